"""The `linear` teacher: next items from a weighted sum of past ones, solved in closed form. No
gradient, no epochs.

    s = x B,   x = sum over the history of decay^age e_i,   B = (X'X + ridge I)^-1 X'Y

Where the log has visits, x is two histories, of this visit and of earlier ones, with weights of
their own (`distilrec.teachers.visit_weights`).

A ridge regression of the next item y on the decayed history x, over training events: the transition
model of SLIST (Choi et al. 2021, sec. 3.2) with one decay, and with the dense weights of EASE
(Steck 2019). It errs in other places than networks do, which is what an ensemble needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.engine.visits import VISIT_GAP
from distilrec.errors import TrainingError
from distilrec.files import RecordKind
from distilrec.networks.batches import Batch
from distilrec.networks.products import (
    counted_events,
    decayed_products,
    default_decay,
    solved,
    visit_products,
)
from distilrec.networks.transitions import REGRESSED_ITEMS
from distilrec.networks.visits import visit_gap_of
from distilrec.offsets import offsets_of
from distilrec.settings import Count, NotNegative, Positive, Settings, ZeroOrMore
from distilrec.teachers.item_weights import (
    DENSE_ITEMS,
    NEIGHBOURS,
    DenseWeights,
    ItemWeightsTeacher,
    Origin,
    SparseWeights,
    Weights,
    carried_weights,
    origin_of,
    read_weights,
)
from distilrec.teachers.neighbours import Regression, rows_by_item, solve_on_neighbours
from distilrec.teachers.teacher import Cost
from distilrec.teachers.visit_weights import VisitWeights
from distilrec.training.trained import Earlier
from distilrec.training.validation import best_on_validation
from distilrec.training.warm import found_at

EARLIER_DECAYS = (0.9, 0.95, 0.98)  # that are tried
_SMALLEST = 0.01
Floats = NDArray[np.float32]


class LinearConfig(Settings, frozen=True, tag="linear", tag_field="kind"):
    """A linear model from past items to the next one, in closed form."""

    ridge: Positive = 300.0
    """Ridge of the regression."""
    decay: Annotated[float, Meta(gt=0, le=1)] | None = None
    """What an event keeps of its weight with each later one, by default .9; where visits are known
    with each later one of this visit, and 1 where events at the same time have no order.
    """
    visit_gap: NotNegative | None = None
    """Seconds without an event that end a visit: events of this visit and of earlier ones have
    weights of their own. By default half an hour where the log has repeats, times, and visits of
    several events, up to 8,000 items; 0 is off.
    """
    earlier_decay: Annotated[float, Meta(gt=0, le=1)] | None = None
    """What an event of an earlier visit keeps of its weight with each later one of earlier visits;
    by default that of .9, .95 and .98 which is the best on validation.
    """
    rows: Count = 300_000
    """Maximum number of training events, drawn at random; all count where visits are known."""
    dense_items: ZeroOrMore = DENSE_ITEMS
    """Largest catalogue with weights between all items; beyond it each item has `neighbours`."""
    neighbours: Count = NEIGHBOURS
    """Items that an item is regressed on in a larger catalogue."""
    max_history: Count = 200
    """Events of a window in which labels are made; the model looks at the whole history."""


class LinearTeacher(ItemWeightsTeacher):
    """B with its configuration. weights: of the items with training rows. All but negative events
    of a history count, and the next events are those to be predicted. earlier_decay: the one that
    was given or chosen, where visits are known.
    """

    def __init__(
        self,
        config: LinearConfig,
        weights: Weights,
        origin: Origin,
        dataset: Dataset,
        earlier_decay: float = 1.0,
    ) -> None:
        visits = isinstance(weights, DenseWeights) and len(weights.matrix) > weights.items
        decay = _decay_of(config, dataset, visits=visits)
        super().__init__(weights, origin, decay=decay, repeats=True, max_history=config.max_history)
        self.config, self.earlier_decay = config, earlier_decay
        self.counted = None if origin.roles is None else ~origin.roles.negative
        self._visits: VisitWeights | None = None
        if isinstance(weights, DenseWeights) and visits:
            gap = config.visit_gap or VISIT_GAP
            self._visits = VisitWeights(weights, dataset.catalogue_size, gap, decay, earlier_decay)

    def _logits(self, batch: Batch, window: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        if self._visits is None:
            return super()._logits(batch, window, position)
        return self._visits.answer(batch, window, position)

    def _scores(self, histories: Histories) -> torch.Tensor:
        if self._visits is None:
            return super()._scores(histories)
        return self._visits.scores(histories)


def fit_linear(
    config: LinearConfig, dataset: Dataset, seed: int, earlier_decay: float | None = None
) -> LinearTeacher:
    """Solve for B. earlier_decay: in place of that of the configuration; where there is none, it is
    chosen on validation.
    """
    began = time.perf_counter()
    gap = visit_gap_of(dataset, config.visit_gap)
    if gap and dataset.info.warm_items <= min(config.dense_items, REGRESSED_ITEMS):
        teacher = _fit_visits(config, dataset, gap, earlier_decay or config.earlier_decay)
        teacher.cost = Cost(teacher.cost.parameters, time.perf_counter() - began)
        return teacher
    solve = _solved if dataset.info.warm_items <= config.dense_items else _solved_on_neighbours
    weights = solve(config, dataset, seed)
    origin = origin_of(config, dataset, time.perf_counter() - began)
    return LinearTeacher(config, weights, origin, dataset)


def _fit_visits(
    config: LinearConfig, dataset: Dataset, gap: float, earlier_decay: float | None
) -> LinearTeacher:
    """Solve for the weights of both histories. earlier_decay: chosen on validation where there is
    none.
    """
    decay, origin = _decay_of(config, dataset, visits=True), origin_of(config, dataset, 0.0)

    def of(earlier: float) -> LinearTeacher:
        products = visit_products(dataset, gap, decay, earlier)
        weights = DenseWeights(solved(products, config.ridge))
        return LinearTeacher(config, weights, origin, dataset, earlier)

    if earlier_decay is not None:
        return of(earlier_decay)
    return best_on_validation(map(of, EARLIER_DECAYS), dataset)


def _decay_of(config: LinearConfig, dataset: Dataset, *, visits: bool) -> float:
    """Return what an event keeps of its weight with each later one, of its visit where these are
    known.
    """
    return default_decay(dataset, visits=visits) if config.decay is None else config.decay


def _solved(config: LinearConfig, dataset: Dataset, seed: int) -> DenseWeights:
    """Return B from X, the history before each event, and Y, its item."""
    decay = _decay_of(config, dataset, visits=False)
    gram, cross = decayed_products(dataset, decay, _chosen(config, dataset, seed))
    gram[np.diag_indices(len(gram))] += config.ridge
    return DenseWeights(np.linalg.solve(gram, cross).astype(np.float32))


def _chosen(config: LinearConfig, dataset: Dataset, seed: int) -> NDArray[np.bool_]:
    """Return which rows are drawn for the regression, (rows,)."""
    rows = dataset.is_training()
    if dataset.roles is not None:
        rows = rows & dataset.is_target()
    draws = np.random.default_rng(seed).random(len(dataset.items))
    drawn = draws < config.rows / max(int(rows.sum()), 1)
    return drawn if dataset.roles is None else drawn & rows


class _Event(NamedTuple):
    """A target, and the distinct items before it with the sums of their weights."""

    target: int
    items: NDArray[np.int32]
    values: Floats


def _solved_on_neighbours(config: LinearConfig, dataset: Dataset, seed: int) -> SparseWeights:
    events = list(_events(config, dataset, seed))
    empty = [_Event(0, np.zeros(0, np.int32), np.zeros(0, np.float32))]
    lengths = [len(event.items) for event in events]
    targets = np.array([event.target for event in events], np.int32)
    rows = np.arange(len(events), dtype=np.int32)
    regression = Regression(
        offsets_of(lengths),
        np.concatenate([event.items for event in events or empty]),
        np.concatenate([event.values for event in events or empty]),
        *rows_by_item(rows, targets, dataset.info.warm_items),
        own=True,
    )
    (weights,) = solve_on_neighbours(regression, [config.ridge], config.neighbours)
    return weights


def _events(config: LinearConfig, dataset: Dataset, seed: int) -> Iterator[_Event]:
    """Yield the events of the regression, each with the events before it that still have a weight
    of a hundredth, and `max_history` of them at most.
    """
    chosen, counted = _chosen(config, dataset, seed), counted_events(dataset)
    decay = _decay_of(config, dataset, visits=False)
    powers = decay ** np.arange(config.max_history, dtype=np.float64)
    powers = powers[powers >= _SMALLEST]
    for user in range(dataset.info.warm_users):
        rows = np.arange(dataset.offsets[user], dataset.train_end[user])
        rows = rows[dataset.items[rows] != UNKNOWN_ITEM]
        history = dataset.items[rows]
        for n in np.flatnonzero(chosen[rows]):
            if n == 0:
                continue
            before = slice(n) if counted is None else np.flatnonzero(counted[rows[:n]])
            latest = history[before][-len(powers) :][::-1]
            items, where = np.unique(latest, return_inverse=True)
            values = np.bincount(where, powers[: len(latest)])
            yield _Event(int(history[n]), items.astype(np.int32), values.astype(np.float32))


class _Record(msgspec.Struct, frozen=True):
    config: LinearConfig
    catalogue_size: int
    fingerprint: str
    seconds: float
    earlier_decay: float = 1.0


SAVED_LINEAR = RecordKind(
    "linear.json",
    _Record,
    ("linear",),
    1,
    TrainingError,
    what="linear teacher",
    fix="train it first (distilrec train)",
    again="delete {folder} and train the teacher again",
)


def save_linear(teacher: LinearTeacher, folder: Path, made_from: str = "") -> None:
    """Write `linear.json` and the weights that it names, in place of the teacher that is there."""
    record = _Record(
        teacher.config,
        teacher._catalogue_size,
        teacher.fingerprint,
        teacher.cost.seconds or 0.0,
        teacher.earlier_decay,
    )
    arrays = {"linear": teacher.item_weights.arrays()}
    SAVED_LINEAR.write(folder, record, arrays, made_from=made_from)


def load_linear(folder: Path, dataset: Dataset) -> LinearTeacher:
    """Return a saved linear teacher. Raises FileMissingError, and TrainingError when it is damaged
    or of other data.
    """
    saved = SAVED_LINEAR.read(folder)
    record = saved.about
    weights = read_weights(saved, "linear", record.fingerprint, dataset)
    origin = origin_of(record.config, dataset, record.seconds)
    return LinearTeacher(record.config, weights, origin, dataset, record.earlier_decay)


def earlier_decay_of(folder: Path) -> float | None:
    """Return the decay of earlier visits of a saved linear teacher, None for one without visits.
    Raises FileMissingError, and TrainingError when it is damaged.
    """
    decay = SAVED_LINEAR.read(folder).about.earlier_decay
    return None if decay == 1.0 else decay


def carried_linear(earlier: Earlier, dataset: Dataset) -> LinearTeacher:
    """Return a saved linear teacher on data that have grown, not fitted again. Raises
    FileMissingError, and TrainingError when it is damaged.
    """
    saved = SAVED_LINEAR.read(earlier.folder)
    record, places = saved.about, found_at("items", earlier.info, dataset.info)
    weights = carried_weights(saved, "linear", places)
    origin = origin_of(record.config, dataset, 0.0)
    return LinearTeacher(record.config, weights, origin, dataset, record.earlier_decay)
