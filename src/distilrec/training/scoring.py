"""The positions that a training step scores, and the logits of the whole catalogue or of
a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from distilrec.networks.batches import Batch
from distilrec.networks.orders import Orders
from distilrec.networks.sequence import SequenceModel
from distilrec.training.options import TrainingConfig

MASKED_LOGIT = -1e9  # finite, so that 0 * log(0) stays 0 in the soft loss
MASKED_BELOW = -1e8  # a logit below this belongs to an item that is left out
# Negatives are drawn by popularity to this power (Mikolov et al. 2013, sec. 2.2)
NEGATIVE_POWER = 0.75
_CERTAIN = 1 - 1e-6  # the largest probability of an unwanted item: gradients stay finite


class Group(NamedTuple):
    """Consecutive positions that count alike in the loss. weight: of each of them; unwanted: what
    stands in place of the targets are items of negative events.
    """

    number: int
    weight: float
    unwanted: bool = False


@dataclass(frozen=True)
class Positions:
    """The positions of a batch that have a target, and what their logits are made of.

    states: (positions, dim); targets: (positions,) int64, items; rows: (positions,) int64, of the
    data set, on the CPU; vectors, biases: (items, dim) and (items,), of the items that are scored;
    warm: how many of these can be a target, they come first; origin: the windows that the positions
    are of; seen: what each position has had, None where that is not left out; drawn: the columns of
    a sampled softmax, None where all items are scored. groups: all positions in order, the unwanted
    ones last; empty where each is a target with the weight 1.
    """

    states: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    vectors: torch.Tensor
    biases: torch.Tensor
    warm: int
    origin: Origin
    seen: Seen | None = None
    drawn: Drawn | None = None
    groups: tuple[Group, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def wanted(self) -> int:
        """How many positions have a target: the first ones."""
        return len(self) - sum(group.number for group in self.groups if group.unwanted)

    @property
    def total(self) -> float:
        """The sum of the weights of the targets, by which the loss is divided."""
        if not self.groups:
            return len(self)
        return sum(group.number * group.weight for group in self.groups if not group.unwanted)

    def select(self, some: slice) -> Positions:
        """Return some of the positions."""
        return replace(
            self,
            states=self.states[some],
            targets=self.targets[some],
            rows=self.rows[some],
            origin=self.origin.select(some),
            seen=None if self.seen is None else self.seen.select(some),
            groups=(),
        )


@dataclass(frozen=True)
class Origin:
    """The windows that positions are of, for a teacher that is asked about them.

    window, place: (positions,) int64, where a position stands in the batch.
    """

    batch: Batch
    window: torch.Tensor
    place: torch.Tensor

    def select(self, some: slice) -> Origin:
        """Return the same of some of the positions."""
        return replace(self, window=self.window[some], place=self.place[some])


@dataclass(frozen=True)
class Seen:
    """What each position has had so far, in or before its window.

    first: (windows, items + 1) int16, the place in the window from which on an item has been had,
    0 for what stands before the window, the length of the window where the item comes later or
    never; window, place: (positions,) int64, where a position stands.
    """

    first: torch.Tensor
    window: torch.Tensor
    place: torch.Tensor

    def select(self, some: slice) -> Seen:
        """Return the same of some of the positions."""
        return replace(self, window=self.window[some], place=self.place[some])

    def among(self, items: torch.Tensor | slice) -> torch.Tensor:
        """Return which of the items each position has had, (positions, items) bool.

        items: the same for all positions, or (positions, n) int64, those of each.
        """
        if isinstance(items, torch.Tensor) and items.ndim == 2:
            first = self.first[self.window.unsqueeze(1), items]
        else:
            first = self.first[:, items][self.window]
        return first <= self.place.to(torch.int16).unsqueeze(1)


@dataclass(frozen=True)
class Drawn:
    """The columns of a sampled softmax behind the target.

    items: (columns,) int64; correction: (columns,), what is added to the logit of each.
    """

    items: torch.Tensor
    correction: torch.Tensor


@dataclass(frozen=True)
class Scored:
    """The positions that a step scores, as a loss sees them.

    logits: (positions, items); targets: (positions,) int64, columns of the logits; warm: how many
    columns are of items that can be a target, the others come behind them; rows: (positions,)
    int64, of the data set, on the CPU;
    states: (positions, dim); progress: the share of the training that is done.
    sampled: where the softmax is sampled. Then the logits are those of the target and of the drawn
    items. positions: what was scored.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    states: torch.Tensor
    warm: int
    progress: float = 0.0
    sampled: Sampled | None = None
    positions: Positions | None = None


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


@dataclass(frozen=True)
class Mixture:
    """The few items that have a share in what a position should predict.

    items: (positions, n) int64; weights: (positions, n) float32, whose sum is the position's weight
    in the loss.
    """

    items: torch.Tensor
    weights: torch.Tensor

    def select(self, some: slice) -> Mixture:
        """Return the same of some of the positions."""
        return Mixture(self.items[some], self.weights[some])


@dataclass(frozen=True)
class Dense:
    """What a teacher expects at each position, over all items: softmax(logits), with a weight.

    logits: (positions, items) float32; those of items that the position has had are left out.
    """

    logits: torch.Tensor
    weight: float


@dataclass(frozen=True)
class CrossEntropy:
    """A loss that is sum_j w_j (-log softmax(s)_j) over few items, or over all, a mean over
    positions, which `distilrec.training.gradients` has a faster way for. Only for a softmax over
    items that can all be a target.

    whole: the same as any loss; mixture: gives few items and their weights w; dense: gives a share
    of all items beside them; by_chunk: the mixture is asked for a chunk of positions at a time, as
    `dense` always is.
    """

    whole: Loss
    mixture: Callable[[Positions], Mixture]
    dense: Callable[[Positions], Dense] | None = None
    by_chunk: bool = False

    def __call__(self, scored: Scored) -> torch.Tensor:
        return self.whole(scored)


def _no_seconds() -> float:
    return 0.0


@dataclass(frozen=True)
class MoreWindows:
    """Windows that are made up from those of each batch, and their loss, which is added.

    make: returns them, from a batch on the CPU and a generator that depends on seed and epoch
    alone; what they are scored on has any target.
    """

    make: Callable[[Batch, np.random.Generator], Batch]
    loss: Loss


@dataclass(frozen=True)
class Objective:
    """What a training minimises. loss: a mean over the scored positions; cold_items: it wants
    logits of the items without training rows as well; asked_seconds: returns how long a teacher
    has been asked so far, in this process; more: what is learned from other windows; orders: in
    which it wants the histories of a log without order; by default each epoch has its own, which
    follows from the seed; trained_from: (users,), the row of each user before which none is scored.
    """

    loss: Loss
    cold_items: bool = False
    asked_seconds: Callable[[], float] = _no_seconds
    more: MoreWindows | None = None
    orders: Orders | None = None
    trained_from: NDArray[np.int64] | None = None


def ground_truth(scored: Scored) -> torch.Tensor:
    """L_y = -log softmax(s)[y] over the items with training rows, the mean over positions."""
    return functional.cross_entropy(scored.logits[:, : scored.warm], scored.targets)


def unlikelihood(scored: Scored) -> torch.Tensor:
    """L_n = -log(1 - softmax(s)[y]), y the item of a negative event, the mean over positions: the
    loss of items not to recommend (Wang et al. 2023, sec. 3), which is that of unlikelihood
    training (Welleck et al. 2020, eq. 2).
    """
    logits, targets = scored.logits[:, : scored.warm], scored.targets
    likely = torch.exp(-functional.cross_entropy(logits, targets, reduction="none"))
    return -torch.log1p(-likely.clamp(max=_CERTAIN)).mean()


def target_alone(positions: Positions, weight: float = 1.0) -> Mixture:
    """Return the true next item of each position with a weight."""
    targets = positions.targets.unsqueeze(1)
    return Mixture(targets, torch.full(targets.shape, weight, device=targets.device))


GROUND_TRUTH = CrossEntropy(ground_truth, target_alone)


def encode_positions(
    model: SequenceModel,
    batch: Batch,
    config: TrainingConfig,
    *,
    mask_seen: bool,
    drawn_by: torch.Tensor,
    processes: int = 1,
    cold_items: bool = False,
    negative_weight: float = 1.0,
) -> Positions | None:
    """Return the positions of a batch that have a target in the catalogue, with their states, and
    behind them those where a negative event follows; None where there is no target.

    What depends on the data is drawn and counted on the CPU, where the batch is; all else runs on
    the model's device, so that the same positions and items are drawn on every device. States are
    float32, whatever the network computes in.
    drawn_by: (items,) float64, the probabilities of a sampled softmax. processes: how many share a
    batch. cold_items: score the items without training rows as well. negative_weight: of a negative
    event, beside a target of weight 1.
    """
    warm = model.items.warm_items
    vectors = model.items.vectors(config.item_dropout)
    wanted = (batch.targets >= 0) & (batch.targets < warm)  # (batch, length)
    known, next_items = wanted, batch.targets
    if batch.unwanted is not None:
        known = wanted | ((batch.unwanted >= 0) & (batch.unwanted < warm))
        next_items = torch.where(wanted, batch.targets, batch.unwanted)
    window, place = known.nonzero(as_tuple=True)  # (positions,) each
    if not len(window):
        return None
    limits = (-(-config.positions // processes), model.most_positions())
    most = min((limit for limit in limits if limit), default=len(window))
    if most < len(window):
        some = torch.randperm(len(window))[:most]
        window, place = window[some], place[some]
    groups: tuple[Group, ...] = ()
    if batch.unwanted is not None or batch.weights is not None:
        window, place, groups = _grouped(batch, wanted, window, place, negative_weight)
        if not any(not group.unwanted for group in groups):
            return None
    rows, targets = batch.rows[window, place], next_items[window, place]
    batch, window, place = (
        batch.to(model.device),
        window.to(model.device),
        place.to(model.device),
    )
    sampled = 0 < config.negatives < warm
    items = slice(model.items.catalogue_size if cold_items and not sampled else warm)
    return Positions(
        states=model.encode_at(batch, vectors, window, place).float(),
        targets=targets.to(model.device),
        rows=rows,
        vectors=vectors[items],
        biases=model.items.biases()[items],
        warm=warm,
        origin=Origin(batch, window, place),
        seen=seen_so_far(batch, model.items.catalogue_size, window, place) if mask_seen else None,
        drawn=_draw(drawn_by, config.negatives, model.device) if sampled else None,
        groups=groups,
    )


def _grouped(
    batch: Batch,
    wanted: torch.Tensor,
    window: torch.Tensor,
    place: torch.Tensor,
    negative_weight: float,
) -> tuple[torch.Tensor, torch.Tensor, tuple[Group, ...]]:
    """Return the positions in the order of their groups, and these.

    wanted: (batch, length) bool, where the next event is a target.
    """
    is_wanted = wanted[window, place]
    weights = torch.full(window.shape, negative_weight)
    weights[is_wanted] = 1.0 if batch.weights is None else batch.weights[window, place][is_wanted]
    order = torch.argsort(weights, stable=True)
    order = order[torch.argsort((~is_wanted[order]).int(), stable=True)]
    kinds = torch.stack([weights, (~is_wanted).float()], dim=1)[order]
    found, counts = torch.unique_consecutive(kinds, dim=0, return_counts=True)
    groups = [
        Group(count, weight, bool(unwanted))
        for (weight, unwanted), count in zip(found.tolist(), counts.tolist(), strict=True)
    ]
    return window[order], place[order], tuple(groups)


def score_positions(model: SequenceModel, positions: Positions, progress: float) -> Scored:
    """Return the logits of these positions: of all items that they are to be scored against, or of
    the target and the drawn items.
    """
    if positions.drawn is not None:
        return _score_sample(model, positions, positions.drawn, progress)
    logits = model.score(positions.states, positions.vectors, positions.biases)
    if positions.seen is not None:
        seen = positions.seen.among(slice(len(positions.vectors)))
        logits = logits.masked_fill(seen, MASKED_LOGIT)
    return Scored(
        logits,
        positions.targets,
        positions.rows,
        positions.states[:, : model.state_dim],
        positions.warm,
        progress,
        positions=positions,
    )


def _draw(drawn_by: torch.Tensor, number: int, device: torch.device) -> Drawn:
    """Draw the items of a sampled softmax.

    A drawn item stands for 1 / (n q) items of its kind: its logit gets log(times drawn / (n q)), so
    that the sum of exponentials is that of the catalogue in expectation (Bengio & Senecal 2008, eq.
    8). The target is always there and gets no correction.
    """
    drawn = torch.multinomial(drawn_by, number, replacement=True)
    items, times = torch.unique(drawn, return_counts=True)
    correction = torch.log(times / (number * drawn_by[items])).float()
    return Drawn(items.to(device), correction.to(device))


def _score_sample(
    model: SequenceModel, positions: Positions, drawn: Drawn, progress: float
) -> Scored:
    """Return the logits of the target (column 0) and of the drawn items, and how to get others."""
    states, vectors, biases = positions.states, positions.vectors, positions.biases

    def logits_of(items: torch.Tensor) -> torch.Tensor:
        logits = model.score_own(states.unsqueeze(1), vectors[items], biases[items], items)
        if positions.seen is None:
            return logits
        return logits.masked_fill(positions.seen.among(items), MASKED_LOGIT)

    targets = positions.targets
    own = model.score_own(states, vectors[targets], biases[targets], targets)
    others = model.score(states, vectors[drawn.items], biases[drawn.items], drawn.items)
    others = others + drawn.correction
    left_out = drawn.items == targets.unsqueeze(1)
    if positions.seen is not None:
        left_out |= positions.seen.among(drawn.items)
    logits = torch.cat([own.unsqueeze(1), others.masked_fill(left_out, MASKED_LOGIT)], dim=1)
    return Scored(
        logits,
        torch.zeros_like(targets),
        positions.rows,
        states[:, : model.state_dim],
        logits.shape[1],
        progress,
        Sampled(functional.pad(drawn.correction, (1, 0)), positions.warm, logits_of),
        positions,
    )


def seen_so_far(
    batch: Batch, catalogue_size: int, window: torch.Tensor, place: torch.Tensor
) -> Seen:
    """Return what the positions of a batch have had.

    window, place: (positions,) int64, where each position stands in the batch.
    """
    length = batch.items.shape[1]
    device = batch.items.device
    # Small integers: there is one for each window and item
    places = torch.arange(length, dtype=torch.int16, device=device).expand_as(batch.items)
    first = torch.full(
        (len(batch.items), catalogue_size + 1), length, dtype=torch.int16, device=device
    )
    first = first.scatter_reduce(1, batch.items, places, "amin").scatter(1, batch.earlier, 0)
    return Seen(first, window, place)
