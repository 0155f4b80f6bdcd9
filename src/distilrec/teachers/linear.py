"""The `linear` teacher: next items from a weighted sum of past ones, solved in closed form. No
gradient, no epochs.

    s = x B,   x = sum over the history of decay^age e_i,   B = (X'X + ridge I)^-1 X'Y

A ridge regression of the next item y on the decayed history x, over training events: the transition
model of SLIST (Choi et al. 2021, sec. 3.2) with one decay, and with the dense weights of EASE
(Steck 2019). It errs in other places than networks do, which is what an ensemble needs.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch.nn import functional

from distilrec.data.dataset import Dataset, Histories
from distilrec.errors import ConfigError, TrainingError
from distilrec.files import RecordKind
from distilrec.networks.batches import Batch
from distilrec.networks.transitions import LARGEST_DENSE, transition_weights
from distilrec.settings import Count, Positive, Settings
from distilrec.teachers.teacher import Answer, Cost

_NO_SHARE = 1e-7  # of its weight; an older event moves no digit of a score


class LinearConfig(Settings, frozen=True, tag="linear", tag_field="kind"):
    """A linear model from past items to the next one, in closed form."""

    ridge: Positive = 300.0
    """Ridge of the regression."""
    decay: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """What an event keeps of its weight with each later one."""
    rows: Count = 300_000
    """Maximum number of training events, drawn at random."""
    max_history: Count = 200
    """Latest events of a user that the model looks at."""


class LinearTeacher:
    """B with its configuration. weights: (items with training rows, the same) float32."""

    per_user = False
    state_dim = 0

    def __init__(
        self,
        config: LinearConfig,
        weights: NDArray[np.float32],
        catalogue_size: int,
        fingerprint: str,
        seconds: float,
    ) -> None:
        self.config, self.weights, self.fingerprint = config, weights, fingerprint
        self.max_history = config.max_history
        self.cost = Cost(weights.size, seconds)
        self.identity = hashlib.sha256(
            msgspec.json.encode((config, fingerprint)) + weights.tobytes()
        ).hexdigest()[:16]
        self._catalogue_size = catalogue_size
        nothing = np.zeros((catalogue_size + 1 - len(weights), weights.shape[1]), np.float32)
        # Cold items, start token and padding add nothing
        self._rows = torch.from_numpy(np.vstack([weights, nothing]))

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        batch, window, position = (
            batch.to(self._rows.device),
            window.to(self._rows.device),
            position.to(self._rows.device),
        )
        used, window = torch.unique(window, return_inverse=True)
        batch = batch.select(used)
        out = self._rows.new_empty(len(window), self.weights.shape[1])
        state = self._before(batch.earlier)
        for step in range(batch.items.shape[1]):
            self._fold(state, batch.items[:, step])
            here = position == step
            out[here] = state[window[here]]
        cold = _below(out.amin(1, keepdim=True)).expand(-1, items - out.shape[1])
        return Answer(torch.cat([out, cold], dim=1))

    def _before(self, earlier: torch.Tensor) -> torch.Tensor:
        """Return the state after the items from before each window, (windows, items)."""
        there = earlier < self._catalogue_size
        age = there.flip(1).cumsum(1).flip(1) - there.long()
        share = torch.where(there, torch.pow(self.config.decay, age.float()), 0.0)
        some = share > _NO_SHARE
        counts = some.sum(1)
        return functional.embedding_bag(
            earlier[some],
            self._rows,
            counts.cumsum(0) - counts,
            per_sample_weights=share[some],
            mode="sum",
        )

    def _fold(self, state: torch.Tensor, items: torch.Tensor) -> None:
        in_catalogue = (items < self._catalogue_size).unsqueeze(1)
        state.mul_(torch.where(in_catalogue, self.config.decay, 1.0)).add_(self._rows[items])

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        out = np.zeros((len(histories), self._catalogue_size), np.float32)
        rows = self._rows.numpy()
        for k in range(len(histories)):
            items = histories.of(k)
            weights = self.config.decay ** np.arange(len(items) - 1, -1, -1, dtype=np.float32)
            out[k, : rows.shape[1]] = weights @ rows[items]
        lowest = torch.from_numpy(out[:, : rows.shape[1]].min(1, keepdims=True))
        out[:, rows.shape[1] :] = _below(lowest).numpy()
        return out


def _below(lowest: torch.Tensor) -> torch.Tensor:
    """Return what items without training rows get: less than the lowest of the others."""
    return lowest.clamp(max=0.0) - 1e-3


def fit_linear(config: LinearConfig, dataset: Dataset, seed: int) -> LinearTeacher:
    """Solve for B. Raises ConfigError when the catalogue is too large for dense weights."""
    items = dataset.info.warm_items
    if items > LARGEST_DENSE:
        raise ConfigError(
            f"the linear teacher holds items x items weights; {items:,} items are more than "
            f"{LARGEST_DENSE:,}",
            fix="use another teacher for this catalogue",
            parameter="teacher",
        )
    began = time.perf_counter()
    weights = transition_weights(
        dataset, ridge=config.ridge, decay=config.decay, rows=config.rows, seed=seed
    )
    seconds = time.perf_counter() - began
    return LinearTeacher(config, weights, dataset.catalogue_size, dataset.fingerprint(), seconds)


class _Record(msgspec.Struct, frozen=True):
    config: LinearConfig
    catalogue_size: int
    fingerprint: str
    seconds: float


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
        teacher.config, teacher._catalogue_size, teacher.fingerprint, teacher.cost.seconds or 0.0
    )
    SAVED_LINEAR.write(
        folder, record, {"linear": {"weights": teacher.weights}}, made_from=made_from
    )


def load_linear(folder: Path, dataset: Dataset) -> LinearTeacher:
    """Return a saved linear teacher. Raises FileMissingError, and TrainingError when it is damaged
    or of other data.
    """
    saved = SAVED_LINEAR.read(folder)
    record, weights = saved.about, saved.arrays("linear").get("weights")
    if record.fingerprint != dataset.fingerprint():
        raise TrainingError(
            f"the teacher in {folder} is of another data set",
            fix="train it again",
            file=str(folder),
        )
    if weights is None or weights.shape != (dataset.info.warm_items, dataset.info.warm_items):
        raise SAVED_LINEAR.damaged(
            saved.path("linear"), "does not hold the weights of this data set"
        )
    return LinearTeacher(
        record.config, weights, record.catalogue_size, record.fingerprint, record.seconds
    )
