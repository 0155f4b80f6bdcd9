"""The label store: a teacher's soft and hard labels on disk, independent of temperature, made once, used by many students.

A folder with `manifest.json` and Parquet shards. One row per training event; the labels are what the teacher expected
before that event.

| column | type |
|---|---|
| row | int64, the row of the event in the data set |
| top_items, top_logits | K items by falling logit, int32 and float16; the first one is the hard label |
| rest_log_sum | float32, log-sum-exp of all other logits |
| sample_items, sample_logits | M items drawn uniformly from the candidates, int32 and float16 |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.errors import FileMissingError, LabelStoreError

FORMAT_VERSION = 1


class LabelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose labels these are, and of what. catalogue: number of items that the teacher scored."""

    teacher: str
    dataset_fingerprint: str
    top_k: int
    samples: int
    seed: int
    mask_seen: bool
    catalogue: int
    shards: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class StoredLabels:
    """What the label store keeps of a teacher's logits.

    top_items: (positions, K) int64; top_logits: (positions, K) float32; rest_log_sum: (positions,) float32, log-sum-exp
    of all other logits; sample_items: (positions, M) int64, drawn uniformly; sample_logits: (positions, M) float32.
    """

    top_items: torch.Tensor
    top_logits: torch.Tensor
    rest_log_sum: torch.Tensor
    sample_items: torch.Tensor
    sample_logits: torch.Tensor


class LabelStore:
    """All labels of one teacher in memory, looked up by data set row."""

    def __init__(self, manifest: LabelManifest, table: pl.DataFrame, dataset: Dataset) -> None:
        self.manifest = manifest
        self._place = np.full(len(dataset.items), -1, np.int64)
        self._place[table["row"].to_numpy()] = np.arange(table.height)
        self._top_items = torch.from_numpy(table["top_items"].to_numpy().copy())
        self._top_logits = torch.from_numpy(table["top_logits"].to_numpy().copy())
        self._rest = torch.from_numpy(table["rest_log_sum"].to_numpy().copy())
        self._sample_items = torch.from_numpy(table["sample_items"].to_numpy().copy())
        self._sample_logits = torch.from_numpy(table["sample_logits"].to_numpy().copy())

    def __len__(self) -> int:
        return len(self._rest)

    def at(self, rows: torch.Tensor) -> StoredLabels:
        """The labels of these data set rows, (positions,). Raises LabelStoreError for a row without labels."""
        place = self._place[rows.numpy()]
        if (place < 0).any():
            raise LabelStoreError(
                f"no labels are stored for row {int(rows[int(np.argmin(place))])} of the data set",
                fix="extract the labels again",
            )
        index = torch.from_numpy(place)
        return StoredLabels(
            top_items=self._top_items[index].long(),
            top_logits=self._top_logits[index].float(),
            rest_log_sum=self._rest[index],
            sample_items=self._sample_items[index].long(),
            sample_logits=self._sample_logits[index].float(),
        )

    def hard_labels(self) -> NDArray[np.int32]:
        """Argmax z of every stored row, (rows,) int32."""
        labels: NDArray[np.int32] = self._top_items[:, 0].numpy()
        return labels


def shard_path(folder: Path, shard: int) -> Path:
    """The file of one shard."""
    return folder / f"labels-{shard:05d}.parquet"


def open_labels(folder: Path, dataset: Dataset) -> LabelStore:
    """The labels in a folder. Raises FileMissingError, and LabelStoreError when they are of another data set, of a newer
    format, or damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileMissingError(
            f"there are no labels in {folder}", fix="extract them first (`distilrec distill` does)", file=str(path)
        )
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=LabelManifest)
        if manifest.format_version != FORMAT_VERSION:
            raise LabelStoreError(
                f"{path} has format {manifest.format_version}, this distilrec reads {FORMAT_VERSION}",
                fix="extract the labels again",
                file=str(path),
            )
        table = pl.concat([pl.read_parquet(shard_path(folder, shard)) for shard in range(manifest.shards)])
    except (msgspec.MsgspecError, pl.exceptions.PolarsError, OSError) as problem:
        raise LabelStoreError(f"the labels in {folder} cannot be read: {problem}", fix="extract them again") from None
    if manifest.dataset_fingerprint != dataset.fingerprint():
        raise LabelStoreError(
            f"the labels in {folder} are of another data set", fix="extract them again", file=str(folder)
        )
    return LabelStore(manifest, table, dataset)
