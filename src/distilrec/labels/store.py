"""The label store: a teacher's soft and hard labels on disk, independent of temperature, made once
and used by many students.

The store is a folder with `manifest.json`, shards and `index.npy`. A shard is one `.npy` file, an
array of records of fixed width. It has one record per training event, or per user where the teacher
gives the same answer for all events of a user. A label is what the teacher expected before the
event.

| field | type |
|---|---|
| key | int64, the row of the event in the data set, or the user |
| top_items | K items by falling logit, uint16 (uint32 past 65,536 items); the hard label first |
| top_logits | their logits, float16 |
| rest_log_sum | float32, log-sum-exp of all other logits |
| sample_items, sample_logits | M items drawn uniformly from the candidates, as above |
| state | the teacher's last hidden layer, float16; only with `labels.states` |

The labels of a log without order are made for several random orders of the histories, with a record
for each event and order. The key is then the row plus, for each earlier order, the number of rows
of the data set (`distilrec.networks.orders`).

The index has one int64 per key: the number of its label, counted through all shards, or -1. Shards
and index stay on disk. A look-up maps a file, copies the records that it needs, and closes the
file, so that neither memory nor the number of open files grows with the number of labels.

The highest logit of a row is subtracted from all its logits. This changes neither softmax nor
order, and float16 is then most precise for the likeliest items. Masked items have the lowest logit.

The manifest is a record (`distilrec.files`): it names the shards with their hashes, and says how
long the extraction took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.errors import LabelStoreError
from distilrec.files import RecordKind, replacing

FORMAT_VERSION = 4
# Some versions of numpy have no types for it
_open_memmap: Callable[..., Any] = np.lib.format.open_memmap
LabelKey = Literal["event", "user"]


class LabelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which teacher and data set the labels are of, and what is stored.

    catalogue: number of items that were scored, the first ones: those with training rows, or all;
    key: whether there is one label per event or per user; states: channels of the
    teacher's hidden layer that are stored, 0 for none; orders: number of random orders of the
    histories with labels, drawn by the seed; 0 where the data set has an order, or where labels do
    not depend on it.
    """

    teacher: str
    dataset_fingerprint: str
    top_k: int
    samples: int
    seed: int
    mask_seen: bool
    catalogue: int
    shards: int
    key: LabelKey = "event"
    states: int = 0
    orders: int = 0


class Extraction(msgspec.Struct, frozen=True):
    """What the extraction cost. labels: number of records; events: number of training events that
    they cover; bytes: on disk.
    """

    labels: int
    events: int
    bytes: int
    seconds: float


class AboutLabels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `manifest.json`, besides its list of shards."""

    labels: LabelManifest
    extraction: Extraction


LABELS = RecordKind(
    "manifest.json",
    AboutLabels,
    (),
    FORMAT_VERSION,
    LabelStoreError,
    what="label store",
    fix="extract the labels first (`distilrec distill` does)",
    again="extract the labels again (`distilrec distill`), after deleting {folder}",
)


@dataclass(frozen=True)
class StoredLabels:
    """What the label store keeps of a teacher's logits.

    top_items: (positions, K) int64; top_logits: (positions, K) float32; rest_log_sum: (positions,)
    float32, log-sum-exp of all other logits; sample_items: (positions, M) int64, drawn uniformly;
    sample_logits: (positions, M) float32.
    """

    top_items: torch.Tensor
    top_logits: torch.Tensor
    rest_log_sum: torch.Tensor
    sample_items: torch.Tensor
    sample_logits: torch.Tensor

    def items(self) -> torch.Tensor:
        """Return the K best and the M drawn items, (positions, K + M) int64."""
        return torch.cat([self.top_items, self.sample_items], dim=-1)


@dataclass(frozen=True)
class MappedArray:
    """An array of one dimension in a `.npy` file, mapped only while it is read.

    offset: of its first element in the file, in bytes.
    """

    path: Path
    dtype: np.dtype[Any]
    offset: int
    length: int

    def map(self) -> NDArray[Any]:
        """Return the array as a read-only map of the file. Raises LabelStoreError where the file is
        gone or has become too short.
        """
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, (self.length,))
        except (OSError, ValueError) as problem:
            raise LABELS.damaged(self.path, f"cannot be read: {problem}") from None

    def at(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of the elements at these positions."""
        # As plain bytes, which numpy copies faster than records field by field
        return np.asarray(self.map()).view(_bytes_of(self.dtype))[positions].view(self.dtype)


class LabelStore:
    """All labels of one teacher, on disk, looked up by data set row."""

    def __init__(
        self,
        manifest: LabelManifest,
        extraction: Extraction,
        shards: Sequence[MappedArray],
        index: MappedArray,
        dataset: Dataset,
    ) -> None:
        self.manifest, self.extraction = manifest, extraction
        self._shards, self._index = tuple(shards), index
        # The number of the first label of each shard, and the number of all labels
        self._bounds = np.cumsum([0, *(shard.length for shard in shards)])
        self._offsets = dataset.offsets

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def at(self, rows: torch.Tensor, device: torch.device | None = None) -> StoredLabels:
        """Return the labels of these data set rows, (positions,) int64 on the CPU, on a device.

        Raises LabelStoreError for a row without labels.
        """
        records = self._records(rows)

        def column(name: str, dtype: type[np.generic]) -> torch.Tensor:
            return torch.from_numpy(records[name].astype(dtype, order="C")).to(device)

        return StoredLabels(
            top_items=column("top_items", np.int64),
            top_logits=column("top_logits", np.float32),
            rest_log_sum=column("rest_log_sum", np.float32),
            sample_items=column("sample_items", np.int64),
            sample_logits=column("sample_logits", np.float32),
        )

    def states_at(self, rows: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        """Return the teacher's states at these data set rows, (positions, states) float32. Raises
        LabelStoreError.
        """
        self.state_width()
        states = self._records(rows)["state"].astype(np.float32, order="C")
        return torch.from_numpy(states).to(device)

    def state_width(self) -> int:
        """Return the number of channels of the teacher's states. Raises LabelStoreError when the
        store has no states.
        """
        if not self.manifest.states:
            raise LabelStoreError(
                "these labels hold no states of the teacher, which the hint needs",
                fix="set labels.states = true, with one trained network as the teacher (not an "
                "ensemble or scores)",
            )
        return self.manifest.states

    def hard_labels(self) -> NDArray[np.int64]:
        """Return argmax z of every label, (labels,) int64."""
        return np.concatenate(
            [shard.map()["top_items"][:, 0].astype(np.int64) for shard in self._shards]
        )

    def _records(self, rows: torch.Tensor) -> NDArray[Any]:
        """Return a copy of the records of these data set rows, shard by shard."""
        labels = self._labels(rows)
        shard_of = np.searchsorted(self._bounds, labels, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        shards, first = np.unique(shard_of[order], return_index=True)
        kind = record_type(self.manifest)
        records = np.empty(len(labels), _bytes_of(kind))
        for shard, positions in zip(shards, np.split(order, first)[1:], strict=True):
            part = self._shards[shard].at(labels[positions] - self._bounds[shard])
            records[positions] = part.view(records.dtype)
        return records.view(kind)

    def _labels(self, rows: torch.Tensor) -> NDArray[np.int64]:
        """Return the number of the label of each of these data set rows, or keys with an order."""
        keys: NDArray[np.int64] = rows.numpy()
        if self.manifest.key == "user":
            keys = np.searchsorted(self._offsets, keys % self._offsets[-1], side="right") - 1
        in_index = keys < self._index.length
        labels = np.where(in_index, self._index.at(np.where(in_index, keys, 0)), -1)
        if (labels < 0).any():
            row = int(rows[int(np.argmin(labels))]) % int(self._offsets[-1])
            raise LabelStoreError(
                f"no labels are stored for row {row} of the data set",
                fix="extract the labels again",
            )
        return labels


def shard_path(folder: Path, shard: int) -> Path:
    """Return the file of one shard."""
    return folder / f"labels-{shard:05d}.npy"


def index_path(folder: Path) -> Path:
    """Return the file with the number of the label of each data set row, or user."""
    return folder / "index.npy"


def record_type(manifest: LabelManifest) -> np.dtype[Any]:
    """Return the type of one label in a shard, without gaps."""
    item = "<u2" if manifest.catalogue <= 2**16 else "<u4"
    fields: list[Any] = [
        ("key", "<i8"),
        ("top_items", item, (manifest.top_k,)),
        ("top_logits", "<f2", (manifest.top_k,)),
        ("rest_log_sum", "<f4"),
        ("sample_items", item, (manifest.samples,)),
        ("sample_logits", "<f2", (manifest.samples,)),
    ]
    if manifest.states:
        fields.append(("state", "<f2", (manifest.states,)))
    return np.dtype(fields)


def _bytes_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type of the same width without fields."""
    return np.dtype((np.void, dtype.itemsize))


def write_array(path: Path, array: NDArray[Any], own: str = "") -> None:
    """Write an array completely or not at all. own: a name of this process, where several may write
    the same file at the same time.
    """
    with replacing(path, own=own) as new, new.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def find_array(path: Path, dtype: np.dtype[Any]) -> MappedArray:
    """Return the position of an array in its file; only the header is read. Raises OSError and
    ValueError where the file is damaged or has other contents.
    """
    mapped = _open_memmap(path, mode="r")
    if mapped.dtype != dtype or mapped.ndim != 1:
        raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape}, not rows of {dtype}")
    return MappedArray(path.absolute(), dtype, mapped.offset, len(mapped))


def open_labels(folder: Path, dataset: Dataset) -> LabelStore:
    """Return the labels in a folder. Raises FileMissingError, and LabelStoreError when they are of
    another data set or format, or damaged.
    """
    record = LABELS.read(folder)
    manifest, extraction = record.about.labels, record.about.extraction
    if manifest.dataset_fingerprint != dataset.fingerprint():
        raise LabelStoreError(
            f"the labels in {folder} are of another data set",
            fix="extract them again",
            file=str(folder),
        )

    def part(path: Path, dtype: np.dtype[Any]) -> MappedArray:
        try:
            return find_array(record.path(path.name), dtype)
        except (OSError, ValueError) as problem:
            raise LABELS.damaged(path, f"cannot be read: {problem}") from None

    kind = record_type(manifest)
    shards = [part(shard_path(folder, shard), kind) for shard in range(manifest.shards)]
    index = part(index_path(folder), np.dtype("<i8"))
    if index.length != index_size(manifest, dataset):
        raise LABELS.damaged(
            index.path,
            f"has {index.length:,} entries instead of {index_size(manifest, dataset):,}",
        )
    if (labels := sum(shard.length for shard in shards)) != extraction.labels:
        raise LABELS.damaged(
            folder / LABELS.file,
            f"counts {extraction.labels:,} labels, its shards hold {labels:,}",
        )
    return LabelStore(manifest, extraction, shards, index, dataset)


def index_size(manifest: LabelManifest, dataset: Dataset) -> int:
    """Return the number of entries of the index: rows of the data set in each order, or users."""
    return dataset.users if manifest.key == "user" else len(dataset.items) * (manifest.orders or 1)
