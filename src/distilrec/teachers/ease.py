"""The `ease` teacher: items that people have together, whatever the order, in closed form.

    s = x B,   x = 1 for each item of the history,   B = I - P diag(1 / diag P),
    P = (X'X + ridge I)^-1

EASE (Steck 2019, eq. 8): the ridge regression of each item on all others, over the users. It is the
baseline of the report as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.files import RecordKind
from distilrec.measure.ranking import users_at_once
from distilrec.settings import Count, Positive, Settings, ZeroOrMore
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
from distilrec.training.trained import Earlier
from distilrec.training.validation import best_on_validation
from distilrec.training.warm import found_at

RIDGES = (30.0, 100.0, 300.0, 1000.0)


class EaseConfig(Settings, frozen=True, tag="ease", tag_field="kind"):
    """Items that people have together, whatever the order, in closed form (EASE)."""

    ridge: Positive | None = None
    """Ridge of the regression; of 30, 100, 300 and 1,000 the best on validation by default."""
    dense_items: ZeroOrMore = DENSE_ITEMS
    """Largest catalogue with weights between all items; beyond it each item has `neighbours`."""
    neighbours: Count = NEIGHBOURS
    """Items that an item is regressed on in a larger catalogue."""
    max_history: Count = 200
    """Events of a window in which labels are made; the model looks at the whole history."""


class EaseTeacher(ItemWeightsTeacher):
    """EASE with its configuration. ridge: the one that was given or chosen; fitted: whether it was
    fitted to the very data that it is of, not to what these have grown from. Only target events of
    a history count.
    """

    def __init__(
        self,
        config: EaseConfig,
        weights: Weights,
        origin: Origin,
        ridge: float,
        *,
        fitted: bool = True,
    ) -> None:
        super().__init__(weights, origin, decay=1.0, repeats=False, max_history=config.max_history)
        self.counted = None if origin.roles is None else origin.roles.target
        self.config, self.ridge, self.fitted = config, ridge, fitted


def fit_ease(config: EaseConfig, dataset: Dataset, ridge: float | None = None) -> EaseTeacher:
    """Return EASE of the training rows. ridge: in place of that of the configuration; where there
    is none, it is chosen on validation.
    """
    began = time.perf_counter()
    given = ridge or config.ridge
    ridges = RIDGES if given is None else (given,)
    solve = _solved if dataset.info.warm_items <= config.dense_items else _solved_on_neighbours
    solved: Iterator[Weights] = solve(config, dataset, ridges)
    origin = origin_of(config, dataset, 0.0)
    teachers = (
        EaseTeacher(config, weights, origin, ridge)
        for ridge, weights in zip(ridges, solved, strict=True)
    )
    best = next(teachers) if len(ridges) == 1 else best_on_validation(teachers, dataset)
    best.cost = Cost(best.cost.parameters, time.perf_counter() - began)
    return best


def _solved(
    config: EaseConfig, dataset: Dataset, ridges: Sequence[float]
) -> Iterator[DenseWeights]:
    """Yield the dense weights for each ridge, one matrix after the other."""
    gram = shared_users(dataset).astype(np.float64)
    for ridge in ridges:
        ridged = torch.from_numpy(gram + ridge * np.eye(len(gram)))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridged)).numpy()
        weights = (-inverse / np.diag(inverse)).astype(np.float32)
        np.fill_diagonal(weights, 0.0)
        yield DenseWeights(weights)


def shared_users(dataset: Dataset) -> NDArray[np.float32]:
    """Return how many users had both of two items in training, X'X, (items, items) for the items
    with training rows. Whole numbers, so that the sum is exact in whatever order.
    """
    items = dataset.info.warm_items
    shared = np.zeros((items, items), np.float32)
    users, had = interactions(dataset)
    step = users_at_once(items)  # whose histories are one dense matrix for a moment
    for start in range(0, dataset.users, step):
        low, high = np.searchsorted(users, [start, start + step])
        matrix = np.zeros((step, items), np.float32)
        matrix[users[low:high] - start, had[low:high]] = 1.0
        shared += matrix.T @ matrix
    return shared


def _solved_on_neighbours(
    config: EaseConfig, dataset: Dataset, ridges: Sequence[float]
) -> Iterator[SparseWeights]:
    users, items = interactions(dataset)
    offsets = np.searchsorted(users, np.arange(dataset.users + 1))
    ones = np.ones(len(items), np.float32)
    targets = rows_by_item(users, items, dataset.info.warm_items)
    regression = Regression(offsets, items, ones, *targets, own=False)
    yield from solve_on_neighbours(regression, ridges, config.neighbours)


def interactions(dataset: Dataset) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return who had what in training, each pair once: users and items, (pairs,), by user. Only
    what is to be predicted counts.
    """
    rows = dataset.target_rows()
    pairs = dataset.user_rows()[rows] * dataset.info.warm_items + dataset.items[rows]
    users, items = np.divmod(np.unique(pairs), dataset.info.warm_items)
    return users.astype(np.int32), items.astype(np.int32)


class _Record(msgspec.Struct, frozen=True):
    config: EaseConfig
    ridge: float
    fingerprint: str
    seconds: float
    fitted: bool = True


SAVED_EASE = RecordKind(
    "ease.json",
    _Record,
    ("ease",),
    1,
    TrainingError,
    what="EASE teacher",
    fix="train it first (distilrec train)",
    again="delete {folder} and train the teacher again",
)


def save_ease(teacher: EaseTeacher, folder: Path, made_from: str = "") -> None:
    """Write `ease.json` and the weights that it names, in place of the teacher that is there."""
    record = _Record(
        teacher.config,
        teacher.ridge,
        teacher.fingerprint,
        teacher.cost.seconds or 0.0,
        teacher.fitted,
    )
    arrays = {"ease": teacher.item_weights.arrays()}
    SAVED_EASE.write(folder, record, arrays, made_from=made_from)


def load_ease(folder: Path, dataset: Dataset) -> EaseTeacher:
    """Return a saved EASE teacher. Raises FileMissingError, and TrainingError when it is damaged or
    of other data.
    """
    saved = SAVED_EASE.read(folder)
    record = saved.about
    weights = read_weights(saved, "ease", record.fingerprint, dataset)
    origin = origin_of(record.config, dataset, record.seconds)
    return EaseTeacher(record.config, weights, origin, record.ridge, fitted=record.fitted)


def ridge_of(folder: Path) -> float:
    """Return the ridge of a saved EASE teacher. Raises FileMissingError, and TrainingError when it
    is damaged.
    """
    return SAVED_EASE.read(folder).about.ridge


def carried_ease(earlier: Earlier, dataset: Dataset) -> EaseTeacher:
    """Return a saved EASE teacher on data that have grown, not fitted again. Raises
    FileMissingError, and TrainingError when it is damaged.
    """
    saved = SAVED_EASE.read(earlier.folder)
    record, places = saved.about, found_at("items", earlier.info, dataset.info)
    weights = carried_weights(saved, "ease", places)
    origin = origin_of(record.config, dataset, 0.0)
    return EaseTeacher(record.config, weights, origin, record.ridge, fitted=False)
