"""What the CPU does faster than torch's own operations: dropout and a linear recurrence.

On other devices, and within `only_torch`, torch's operations are taken; they give the same values,
but for the random numbers of dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from distilrec.engine.kernels import kernel
from distilrec.networks.full_precision import in_float32

_LEVELS = 2**16  # of the random numbers of dropout
_only_torch: ContextVar[bool] = ContextVar("only_torch", default=False)


@contextmanager
def only_torch() -> Iterator[None]:
    """Take torch's own operations within, for what looks inside them, such as `torch.func.vmap`."""
    token = _only_torch.set(True)
    try:
        yield
    finally:
        _only_torch.reset(token)


def dropout(x: torch.Tensor, share: float, training: bool) -> torch.Tensor:
    """Set a share of the values to 0 at random while training, and multiply the others by
    1 / (1 - share) (Srivastava et al. 2014, sec. 10).

    The share is exact to 2^-16; the random numbers follow from torch's generator.
    """
    if not training or not share or not takes_kernels(x):
        return functional.dropout(x, share, training)
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))  # four numbers of 16 bits each
    kept = words.view(np.uint16)[: x.numel()] >= round(share * _LEVELS)
    factors = np.multiply(kept, np.float32(1 / (1 - share)), dtype=np.float32)
    return x * torch.from_numpy(factors).view(x.shape)


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.share, self.training)


@in_float32
def scan(inputs: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """h_t = decay * h_{t-1} + inputs_t for all t, of the shape of the inputs.

    inputs: (batch, length, scales, dim); decay: (scales, dim) in (0, 1). In float32, also within
    autocast: bf16 has too few digits for products of many decays.
    """
    if not takes_kernels(inputs):
        return _doubling_scan(inputs, decay)
    state: torch.Tensor = _Scan.apply(inputs, decay)  # type: ignore[no-untyped-call]
    return state


def takes_kernels(x: torch.Tensor) -> bool:
    """Return whether a tensor is one that the kernels of the CPU compute with."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not _only_torch.get()


def _doubling_scan(inputs: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """Return what `scan` does, in log2(length) steps (Blelloch 1990, the doubling form)."""
    state, power, step = inputs, decay, 1
    while step < inputs.shape[1]:
        # The state `step` events ago
        earlier = functional.pad(state[:, :-step], (0, 0, 0, 0, step, 0))
        state = state + power * earlier
        power = power * power
        step *= 2
    return state


class _Scan(torch.autograd.Function):
    """The recurrence, one event after the other, with the recurrence of its gradient backwards."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        state = inputs.detach().clone(memory_format=torch.contiguous_format)
        flat, rates = _flat(state), decay.detach().contiguous().numpy().ravel()
        in_threads(len(flat), lambda some: _forwards(flat[some], rates))
        ctx.save_for_backward(state, decay)
        return state

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state, decay = ctx.saved_tensors
        of_inputs = gradients[0].clone(memory_format=torch.contiguous_format)
        flat = _flat(of_inputs)
        # One row for each history, so that threads do not add to the same numbers
        of_decay = np.zeros((len(flat), flat.shape[2]), np.float32)
        states, rates = _flat(state), decay.contiguous().numpy().ravel()
        in_threads(
            len(flat),
            lambda some: _backwards(flat[some], rates, states[some], of_decay[some]),
        )
        return of_inputs, torch.from_numpy(of_decay.sum(0)).view(decay.shape)


def _flat(state: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = state.flatten(2).numpy()
    return array


def in_threads(rows: int, run: Callable[[slice], None], fewest: int = 1) -> None:
    """Call run with parts of the rows, one part for each of torch's threads, of `fewest` rows or
    more. What it calls must let go of Python's lock to gain by it, as compiled kernels do.
    """
    threads = max(1, min(torch.get_num_threads(), rows // fewest))
    bounds = [rows * thread // threads for thread in range(threads + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    if threads == 1:
        run(parts[0])
    else:
        list(_pool().map(run, parts))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="distilrec-training")


@kernel
def _forwards(state, decay):  # type: ignore[no-untyped-def]
    """(histories, length, channels), in place."""
    for b in range(state.shape[0]):
        for t in range(1, state.shape[1]):
            before, now = state[b, t - 1], state[b, t]
            for c in range(decay.shape[0]):
                now[c] += decay[c] * before[c]


@kernel
def _backwards(gradient, decay, state, of_decay):  # type: ignore[no-untyped-def]
    """Put the gradient of the inputs in place of that of the states, and add up the decay's."""
    for b in range(gradient.shape[0]):
        total = of_decay[b]
        for t in range(gradient.shape[1] - 2, -1, -1):
            later, now, before = gradient[b, t + 1], gradient[b, t], state[b, t]
            for c in range(decay.shape[0]):
                now[c] += decay[c] * later[c]
                total[c] += later[c] * before[c]
