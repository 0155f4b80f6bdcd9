"""The positions that a training step scores, and the logits of the whole catalogue or of
a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from distilrec.networks.batches import Batch
from distilrec.networks.sequence import SequenceModel
from distilrec.training.options import TrainingConfig

MASKED_LOGIT = -1e9  # finite, so that 0 * log(0) stays 0 in the soft loss
# Negatives are drawn by popularity to this power (Mikolov et al. 2013, sec. 2.2)
NEGATIVE_POWER = 0.75


@dataclass(frozen=True)
class Scored:
    """The positions that a step scores, as a loss sees them.

    logits: (positions, items); targets: (positions,) int64, columns of the logits; warm: how many
    columns are of items that can be a target, the others come behind them; rows: (positions,)
    int64, of the data set, on the CPU;
    states: (positions, dim); progress: the share of the training that is done.
    sampled: where the softmax is sampled. Then the logits are those of the target and of the drawn
    items.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    states: torch.Tensor
    warm: int
    progress: float = 0.0
    sampled: Sampled | None = None


@dataclass(frozen=True)
class Sampled:
    """A softmax of which only some columns are there.

    correction: (columns,), what has been added to the logit of each column (0 for the target);
    catalogue: how many items there are; logits_of: the logits of any items, (positions, n) from
    (positions, n) int64.
    """

    correction: torch.Tensor
    catalogue: int
    logits_of: Callable[[torch.Tensor], torch.Tensor]


Loss = Callable[[Scored], torch.Tensor]


def ground_truth(scored: Scored) -> torch.Tensor:
    """L_y = -log softmax(s)[y] over the items with training rows, the mean over positions."""
    return functional.cross_entropy(scored.logits[:, : scored.warm], scored.targets)


def score_positions(
    model: SequenceModel,
    batch: Batch,
    config: TrainingConfig,
    mask_seen: bool,
    drawn_by: torch.Tensor,
    progress: float,
    processes: int = 1,
    cold_items: bool = False,
) -> Scored | None:
    """Return the logits of the positions of a batch that have a target in the catalogue; None where
    there is no such position.

    What depends on the data is drawn and counted on the CPU, where the batch is; all else runs on
    the model's device, so that the same positions and items are drawn on every device.
    processes: how many share a batch. cold_items: score the items without training rows as well.
    """
    warm = model.items.warm_items
    vectors = model.items.vectors(config.item_dropout)
    known = (batch.targets >= 0) & (batch.targets < warm)  # (batch, length)
    window, position = known.nonzero(as_tuple=True)  # (positions,) each
    if not len(window):
        return None
    limits = (-(-config.positions // processes), model.most_positions())
    most = min((limit for limit in limits if limit), default=len(window))
    if most < len(window):
        some = torch.randperm(len(window))[:most]
        window, position = window[some], position[some]
    rows = batch.rows[window, position]
    batch, window, position = (
        batch.to(model.device),
        window.to(model.device),
        position.to(model.device),
    )
    states = model.encode(batch, vectors)[window, position]  # (positions, dim)
    targets = batch.targets[window, position]
    if 0 < config.negatives < warm:

        def logits_of(items: torch.Tensor) -> torch.Tensor:
            logits = model.score_own(states.unsqueeze(1), vectors[items], model.items.bias[items])
            if not mask_seen:
                return logits
            seen = seen_items(batch, model.items.catalogue_size, window, position, items)
            return logits.masked_fill(seen, MASKED_LOGIT)

        logits, correction = _sampled_logits(
            model, batch, config, mask_seen, drawn_by, vectors, states, window, position
        )
        sampled = Sampled(correction, warm, logits_of)
        return Scored(
            logits, torch.zeros_like(targets), rows, states, logits.shape[1], progress, sampled
        )
    items = slice(model.items.catalogue_size if cold_items else warm)
    logits = model.score(states, vectors[items], model.items.biases()[items])
    if mask_seen:
        logits.masked_fill_(
            seen_items(batch, model.items.catalogue_size, window, position, items), MASKED_LOGIT
        )
    return Scored(logits, targets, rows, states, warm, progress)


def _sampled_logits(
    model: SequenceModel,
    batch: Batch,
    config: TrainingConfig,
    mask_seen: bool,
    drawn_by: torch.Tensor,
    vectors: torch.Tensor,
    states: torch.Tensor,
    window: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the target (column 0) and of the drawn items, (positions, 1 + drawn), and the
    correction in them.

    A drawn item stands for 1 / (n q) items of its kind: its logit gets log(times drawn / (n q)), so
    that the sum of exponentials is that of the catalogue in expectation (Bengio & Senecal 2008, eq.
    8). The target is always there and gets no correction.
    """
    drawn = torch.multinomial(drawn_by, config.negatives, replacement=True)
    items, times = torch.unique(drawn, return_counts=True)
    correction = torch.log(times / (config.negatives * drawn_by[items])).float().to(model.device)
    items = items.to(model.device)
    targets = batch.targets[window, position]
    own = model.score_own(states, vectors[targets], model.items.bias[targets]).unsqueeze(1)
    others = model.score(states, vectors[items], model.items.bias[items]) + correction
    left_out = items == targets.unsqueeze(1)
    if mask_seen:
        left_out |= seen_items(batch, model.items.catalogue_size, window, position, items)
    logits = torch.cat([own, others.masked_fill(left_out, MASKED_LOGIT)], dim=1)
    return logits, functional.pad(correction, (1, 0))


def seen_items(
    batch: Batch,
    catalogue_size: int,
    window: torch.Tensor,
    position: torch.Tensor,
    items: torch.Tensor | slice,
) -> torch.Tensor:
    """Which of `items` each position has had so far, in or before its window, (positions, items)
    bool.

    items: the same for all positions, or (positions, n) of each.
    """
    length = batch.items.shape[1]
    device = batch.items.device
    # Small integers: the gather below is large
    places = torch.arange(length, dtype=torch.int16, device=device).expand_as(batch.items)
    first_seen = torch.full(
        (len(batch.items), catalogue_size + 1), length, dtype=torch.int16, device=device
    )
    first_seen = first_seen.scatter_reduce(1, batch.items, places, "amin").scatter(
        1, batch.earlier, 0
    )
    if isinstance(items, torch.Tensor) and items.ndim == 2:
        first = first_seen[window.unsqueeze(1), items]
    else:
        first = first_seen[:, items][window]
    return first <= position.to(torch.int16).unsqueeze(1)
