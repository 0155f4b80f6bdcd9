"""Items x items weights, and the teachers that add up their rows: `linear` and `ease`.

    s = sum over the history of decay^age B[item, :]

The weights are dense, or sparse for a large catalogue: a few neighbours of each item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from distilrec.data.dataset import Dataset, Histories
from distilrec.errors import TrainingError
from distilrec.files import Record
from distilrec.networks.batches import Batch
from distilrec.offsets import groups_of, offsets_of
from distilrec.settings import Settings
from distilrec.targets import Roles
from distilrec.teachers.teacher import Answer, Cost

DENSE_ITEMS = 12_000  # (items, items) float32 then take 576 MB
NEIGHBOURS = 100


class DenseWeights:
    """B as one matrix. matrix: (items, items) float32, the row is the item of the history; or with
    as many rows more for another history, `distilrec.teachers.visit_weights`.
    """

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        self.matrix, self.items, self.parameters = matrix, matrix.shape[1], matrix.size
        self._rows = torch.from_numpy(matrix)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        return {"weights": self.matrix}

    def add_rows(self, state: torch.Tensor, places: torch.Tensor, items: torch.Tensor) -> None:
        """Add the rows of these items to different rows of the state, (windows, items)."""
        state[places] += self._rows[items]

    def weighted_sums(
        self, windows: int, places: torch.Tensor, items: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """Return for each window the sum of the rows of its items, each times its factor, (windows,
        items). places: the window of each item, rising.
        """
        counts = torch.bincount(places, minlength=windows)
        starts = counts.cumsum(0) - counts
        return functional.embedding_bag(
            items, self._rows, starts, per_sample_weights=factors, mode="sum"
        )


class SparseWeights:
    """The same where most weights are 0: of each row only the others are kept.

    offsets: (items + 1,) int64, row i is offsets[i]:offsets[i + 1]; targets: (n,) int32; values:
    (n,) float32.
    """

    def __init__(
        self, offsets: NDArray[np.int64], targets: NDArray[np.int32], values: NDArray[np.float32]
    ) -> None:
        self.offsets, self.targets, self.values = offsets, targets, values
        self.items, self.parameters = len(offsets) - 1, len(values)
        self._starts = torch.from_numpy(offsets)
        self._targets = torch.from_numpy(targets.astype(np.int64))
        self._values = torch.from_numpy(values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        return {"offsets": self.offsets, "targets": self.targets, "values": self.values}

    def add_rows(self, state: torch.Tensor, places: torch.Tensor, items: torch.Tensor) -> None:
        """Add the rows of these items to rows of the state, (windows, items)."""
        row, entries = self._entries(items)
        state.index_put_(
            (places[row], self._targets[entries]), self._values[entries], accumulate=True
        )

    def weighted_sums(
        self, windows: int, places: torch.Tensor, items: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """Return for each window the sum of the rows of its items, each times its factor, (windows,
        items). places: the window of each item.
        """
        row, entries = self._entries(items)
        where, values = (places[row], self._targets[entries]), factors[row] * self._values[entries]
        return torch.zeros(windows, self.items).index_put_(where, values, accumulate=True)

    def _entries(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the entries of these rows stand, and to which of the rows each belongs."""
        starts = self._starts[items]
        counts = self._starts[items + 1] - starts
        row = torch.repeat_interleave(torch.arange(len(items)), counts)
        before = (counts.cumsum(0) - counts)[row]
        return row, torch.arange(len(row)) - before + starts[row]


Weights = DenseWeights | SparseWeights


def read_weights(saved: Record[Any], array: str, fingerprint: str, dataset: Dataset) -> Weights:
    """Return the weights of a saved teacher. fingerprint: that of the data set that it is of.

    Raises TrainingError when it is damaged or of other data.
    """
    if fingerprint != dataset.fingerprint():
        raise TrainingError(
            f"the teacher in {saved.folder} is of another data set",
            fix="train it again",
            file=str(saved.folder),
        )
    weights = _weights_of(saved.arrays(array), dataset.info.warm_items)
    if weights is None:
        raise saved.kind.damaged(saved.path(array), "does not hold the weights of this data set")
    return weights


def _weights_of(arrays: Mapping[str, NDArray[Any]], items: int) -> Weights | None:
    """Return the weights that these arrays hold; None where they do not fit the catalogue."""
    if set(arrays) == {"weights"}:
        matrix = arrays["weights"]
        fits = matrix.shape in ((items, items), (2 * items, items))
        return DenseWeights(matrix) if fits else None
    if set(arrays) != {"offsets", "targets", "values"}:
        return None
    offsets, targets, values = arrays["offsets"], arrays["targets"], arrays["values"]
    fits = (
        len(offsets) == items + 1
        and offsets[0] == 0
        and not (np.diff(offsets) < 0).any()
        and len(targets) == len(values) == offsets[-1]
        and (not len(targets) or 0 <= targets.min() <= targets.max() < items)
    )
    return SparseWeights(offsets, targets, values) if fits else None


def carried_weights(saved: Record[Any], array: str, places: NDArray[np.int64]) -> Weights:
    """Return the weights of a saved teacher between the items of data that have grown. places:
    (items,), where each item with training rows stood before, -1 for a new one, which has no
    weights.

    Raises TrainingError when the teacher is damaged.
    """
    arrays = saved.arrays(array)
    dense = arrays.get("weights", np.zeros((0, 0)))
    items = dense.shape[1] if dense.size else len(arrays.get("offsets", [0])) - 1
    weights = _weights_of(arrays, items)
    if weights is None or places.max(initial=-1) >= weights.items:
        raise saved.kind.damaged(saved.path(array), "does not hold the weights of its data set")
    there = np.flatnonzero(places >= 0)
    if isinstance(weights, DenseWeights):
        blocks = weights.matrix.reshape(-1, weights.items, weights.items)
        matrix = np.zeros((len(blocks), len(places), len(places)), np.float32)
        for old, new in zip(blocks, matrix, strict=True):
            new[np.ix_(there, there)] = old[np.ix_(places[there], places[there])]
        return DenseWeights(matrix.reshape(-1, len(places)))
    now = np.full(weights.items, -1, np.int64)
    now[places[there]] = there
    rows, targets = now[groups_of(weights.offsets)], now[weights.targets]
    kept = np.flatnonzero((rows >= 0) & (targets >= 0))
    kept = kept[np.argsort(rows[kept], kind="stable")]
    offsets = offsets_of(np.bincount(rows[kept], minlength=len(places)))
    return SparseWeights(offsets, targets[kept].astype(np.int32), weights.values[kept])


@dataclass(frozen=True)
class Origin:
    """Where weights come from. about: the configuration and the data, of which the identity of the
    teacher is a hash; roles: what the event types mean.
    """

    about: bytes
    catalogue_size: int
    fingerprint: str
    seconds: float
    roles: Roles | None = None


def origin_of(config: Settings, dataset: Dataset, seconds: float) -> Origin:
    """Return the origin of weights that are fitted to a data set. seconds: how long that took."""
    about = msgspec.json.encode(config)
    return Origin(about, dataset.catalogue_size, dataset.fingerprint(), seconds, dataset.roles)


class ItemWeightsTeacher:
    """A teacher that adds up the rows of its weights over the whole history.

    decay: what an event keeps of its weight with each later one. repeats: whether an item counts as
    often as it is in the history, or once.

    counted: (types,), which events of a history count, None for all.
    """

    per_user = False
    state_dim = 0
    counted: NDArray[np.bool_] | None = None

    def __init__(
        self, weights: Weights, origin: Origin, *, decay: float, repeats: bool, max_history: int
    ) -> None:
        self.item_weights, self.fingerprint = weights, origin.fingerprint
        self.max_history = max_history
        self.cost = Cost(weights.parameters, origin.seconds)
        digest = hashlib.sha256(origin.about + origin.fingerprint.encode())
        for array in weights.arrays().values():
            digest.update(array.tobytes())
        self.identity = digest.hexdigest()[:16]
        self._decay, self._repeats = decay, repeats
        self._catalogue_size = origin.catalogue_size

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weights as one matrix, (items with training rows, the same) float32."""
        if isinstance(self.item_weights, DenseWeights):
            return self.item_weights.matrix
        sparse = self.item_weights
        matrix = np.zeros((sparse.items, sparse.items), np.float32)
        rows = groups_of(sparse.offsets)
        matrix[rows, sparse.targets] = sparse.values
        return matrix

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        used, window = torch.unique(window.to(_CPU), return_inverse=True)
        batch, position = self._with_counted(batch.to(_CPU).select(used)), position.to(_CPU)
        out = self._logits(batch, window, position)
        cold = _below(out.amin(1, keepdim=True)).expand(-1, items - out.shape[1])
        return Answer(torch.cat([out, cold], dim=1))

    def _logits(self, batch: Batch, window: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Return the logits of the items with training rows, (positions, items). window, position:
        where each stands in the batch, which has padding for what does not count.
        """
        out = torch.empty(len(window), self.item_weights.items)
        state = self._sums(batch.earlier)
        # With a column for the start token and the padding
        had = torch.zeros(len(batch.items), self._catalogue_size + 1, dtype=torch.bool)
        had.scatter_(1, batch.earlier, True)
        for step in range(batch.items.shape[1]):
            self._fold(state, had, batch.items[:, step])
            here = position == step
            out[here] = state[window[here]]
        return out

    def _with_counted(self, batch: Batch) -> Batch:
        """Return the batch with padding in place of the events that do not count."""
        if self.counted is None:
            return batch
        counted, padding = torch.from_numpy(self.counted), torch.tensor(self._catalogue_size)
        return replace(
            batch,
            items=torch.where(counted[batch.events], batch.items, padding),
            earlier=torch.where(counted[batch.earlier_events], batch.earlier, padding),
        )

    def _sums(self, items: torch.Tensor) -> torch.Tensor:
        """Return the state after some items, (windows, items). items: (windows, n), padded."""
        windows, there = len(items), items < self._catalogue_size
        places, items, factors = decayed(items, there, self._decay, self.item_weights.items)
        if not self._repeats:
            size = self._catalogue_size
            pairs = torch.unique(places * size + items)
            places, items = pairs // size, pairs % size
            factors = torch.ones(len(items))
        return self.item_weights.weighted_sums(windows, places, items, factors)

    def _fold(self, state: torch.Tensor, had: torch.Tensor, items: torch.Tensor) -> None:
        """Add one event of each window. Cold items, start token and padding add nothing."""
        if self._decay < 1:
            in_catalogue = (items < self._catalogue_size).unsqueeze(1)
            state.mul_(torch.where(in_catalogue, self._decay, 1.0))
        adds = items < self.item_weights.items
        if not self._repeats:
            adds &= ~had.gather(1, items.unsqueeze(1)).squeeze(1)
            had.scatter_(1, items.unsqueeze(1), True)
        places = adds.nonzero().squeeze(1)
        self.item_weights.add_rows(state, places, items[places])

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        out = np.zeros((len(histories), self._catalogue_size), np.float32)
        warm = self.item_weights.items
        for first in range(0, len(histories), _TOGETHER):
            part = histories.select(first, first + _TOGETHER)
            if self.counted is not None:  # padding in place of the others, whose time still counts
                items = np.where(self.counted[part.events], part.items, self._catalogue_size)
                part = replace(part, items=items)
            out[first : first + len(part), :warm] = self._scores(part).numpy()
        lowest = torch.from_numpy(out[:, :warm].min(1, keepdims=True))
        out[:, warm:] = _below(lowest).numpy()
        return out

    def _scores(self, histories: Histories) -> torch.Tensor:
        """Return the logits of the items with training rows, (batch, items)."""
        return self._sums(padded(histories, histories.items, self._catalogue_size))


def decayed(
    items: torch.Tensor, there: torch.Tensor, decay: float, warm: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the events whose rows count: the window of each, rising, its item and its factor.

    items: (windows, n); there: (windows, n), which of these are events of the history; decay: what
    an event keeps of its weight with each later one; warm: how many items have rows.
    """
    age = there.flip(1).cumsum(1).flip(1) - there.long()
    factors = torch.where(there, torch.pow(decay, age.float()), 0.0)
    adds = (items < warm) & (factors > _NO_SHARE)
    places = torch.arange(len(items)).unsqueeze(1).expand_as(items)
    return places[adds], items[adds], factors[adds]


def padded(histories: Histories, values: NDArray[Any], padding: int) -> torch.Tensor:
    """Return what the events of each history have, (events,), as (batch, longest) int64, padded."""
    sizes = np.diff(histories.offsets)
    table = np.full((len(histories), int(sizes.max(initial=0))), padding, np.int64)
    table[np.arange(table.shape[1]) < sizes[:, None]] = values
    return torch.from_numpy(table)


_CPU = torch.device("cpu")
_TOGETHER = 64  # histories that are added up at one time
_NO_SHARE = 1e-7  # of its weight; an older event moves no digit of a score


def _below(lowest: torch.Tensor) -> torch.Tensor:
    """Return what items without training rows get: less than the lowest of the others."""
    return lowest.clamp(max=0.0) - 1e-3
