"""The gradients of a step, a chunk of positions at a time: logits of the whole catalogue are the
largest tensors of a training, and no more of them exist at once than fit a processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch

from distilrec.networks.sequence import SequenceModel
from distilrec.training.kernels import cross_entropy
from distilrec.training.precision import computing_in
from distilrec.training.scoring import (
    CrossEntropy,
    Group,
    Loss,
    Mixture,
    Positions,
    score_positions,
    unlikelihood,
)

# Logits of a chunk. On the CPU about what stays in its caches while the loss reads and writes it
# several times; elsewhere what is little beside the memory of a GPU.
_CPU_LOGITS = 2**19
_LOGITS = 2**26
_FEWEST = 16  # positions of a chunk, however large the catalogue is


def add_gradients(
    model: SequenceModel,
    positions: Positions,
    loss: Loss,
    progress: float,
    precision: torch.dtype = torch.float32,
    *,
    penalized: bool = True,
) -> torch.Tensor:
    """Add the gradients of the loss and, where `penalized`, of the model's penalty to those of the
    weights, and return the value, a scalar.

    The loss is a mean over positions; that of all is the mean of the chunks' by their sizes and the
    weights of their targets. Negative events have `unlikelihood` as their loss.
    States and item vectors get the gradients of their chunks first, the network behind them gets
    their sum in one pass at the end.
    precision: what logits are computed in; losses are computed in float32.
    """
    whole = [positions.states, positions.vectors, positions.biases]
    # The same values as leaves of a graph of their own
    states, vectors, biases = (tensor.detach().requires_grad_() for tensor in whole)
    own = replace(positions, vectors=vectors, biases=biases)
    in_one_pass = loss if isinstance(loss, CrossEntropy) and _is_plain(own) else None
    # Labels that are stored are looked up once for all positions, not once a chunk
    once = in_one_pass is not None and not in_one_pass.by_chunk
    mixture = None
    if in_one_pass is not None and once:
        with_target = own.select(slice(own.wanted)) if own.groups else own
        mixture = in_one_pass.mixture(with_target)
    penalty = model.penalty() if penalized else positions.states.new_zeros(())
    value, of_states = penalty.detach(), []
    for some, weight, unwanted in _weighted_chunks(positions, states.device):
        part = replace(own.select(some), states=states[some].detach().requires_grad_())
        share = weight * len(part) / positions.total
        of_part: torch.Tensor | float
        if in_one_pass is None or unwanted:
            term = unlikelihood if unwanted else loss
            of_part = _of_chunk(model, part, term, progress, share, precision)
        else:
            few = in_one_pass.mixture(part) if mixture is None else mixture.select(some)
            of_part = _of_mixture(model, part, in_one_pass, few, share, precision)
        value = value + of_part
        of_states.append(
            torch.zeros_like(part.states) if part.states.grad is None else part.states.grad
        )
    pairs = [
        (penalty, torch.ones_like(penalty)),
        *zip(whole, (torch.cat(of_states), vectors.grad, biases.grad), strict=True),
    ]
    known = [pair for pair in pairs if pair[0].requires_grad and pair[1] is not None]
    if known:
        torch.autograd.backward([end for end, _ in known], [gradient for _, gradient in known])
    return value


def _of_chunk(
    model: SequenceModel,
    part: Positions,
    loss: Loss,
    progress: float,
    share: float,
    precision: torch.dtype,
) -> torch.Tensor:
    """Add share times the gradients of the loss of some positions, and return share times it."""
    with computing_in(precision, part.states.device):
        scored = score_positions(model, part, progress)
    value = share * loss(replace(scored, logits=scored.logits.float()))
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def _of_mixture(
    model: SequenceModel,
    part: Positions,
    loss: CrossEntropy,
    mixture: Mixture,
    share: float,
    precision: torch.dtype,
) -> float:
    """Do what `_of_chunk` does for a cross-entropy, in one pass."""
    dense = None if loss.dense is None else loss.dense(part)
    with computing_in(precision, part.states.device):
        logits = model.score(part.states, part.vectors, part.biases)
    gradients = logits.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    seen = part.seen
    value = cross_entropy(
        gradients,
        None if seen is None else seen.first,
        torch.zeros_like(part.targets) if seen is None else seen.window,
        torch.zeros_like(part.targets) if seen is None else seen.place,
        mixture.items,
        mixture.weights,
        share / len(part),
        dense,
    )
    logits.backward(gradients.to(logits.dtype))  # type: ignore[no-untyped-call]
    return value


def _is_plain(part: Positions) -> bool:
    """Return whether there is one softmax over all columns, on the CPU."""
    return (
        part.states.device.type == "cpu" and part.drawn is None and part.warm == len(part.vectors)
    )


def _columns(positions: Positions) -> int:
    return len(positions.vectors if positions.drawn is None else positions.drawn.items)


def _weighted_chunks(
    positions: Positions, device: torch.device
) -> Iterator[tuple[slice, float, bool]]:
    """Yield slices of the positions, each of one group, with the weight of its positions and
    whether they are unwanted.
    """
    first = 0
    for count, weight, unwanted in positions.groups or (Group(len(positions), 1.0),):
        for some in _chunks(count, _columns(positions), device):
            yield slice(first + some.start, first + some.stop), weight, unwanted
        first += count


def _chunks(positions: int, columns: int, device: torch.device) -> list[slice]:
    """Return slices of about as many positions each."""
    most = _CPU_LOGITS if device.type == "cpu" else _LOGITS
    number = -(-positions // max(most // columns, _FEWEST))
    bounds = [positions * chunk // number for chunk in range(number + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]
