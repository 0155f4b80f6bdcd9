"""The label store: a teacher's soft and hard labels on disk, independent of temperature, made once,
used by many students.

A folder with `manifest.json` and Parquet shards. One row per training event, or per user where the
teacher says the same about all events of a user; the labels are what the teacher expected before
that event.

| column | type |
|---|---|
| key | int64, the row of the event in the data set, or the user |
| top_items | K items by falling logit, uint16 (uint32 past 65,536 items); the hard label first |
| top_logits | their logits, float16 |
| rest_log_sum | float32, log-sum-exp of all other logits |
| sample_items, sample_logits | M items drawn uniformly from the candidates, as above |
| state | the teacher's last hidden layer, float16; only where asked for |

Logits are stored minus the highest of the row, which changes no softmax and no order, and leaves
float16 most precise where probabilities are. Masked items have the lowest.

The manifest is a record (`distilrec.files`): it names the shards with their hashes, and says how
long the extraction took.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.errors import LabelStoreError
from distilrec.files import RecordKind

FORMAT_VERSION = 3
LabelKey = Literal["event", "user"]


class LabelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose labels these are, and of what. catalogue: number of items that were scored (the first
    ones: those with training rows, or all); key: one label per event, or per user; states: channels
    of the teacher's hidden layer that are kept, 0 for none.
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


class Extraction(msgspec.Struct, frozen=True):
    """What the extraction cost. labels: rows in the store; events: training events that they stand
    for; bytes: on disk.
    """

    labels: int
    events: int
    bytes: int
    seconds: float


class AboutLabels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `manifest.json` says besides its shards."""

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


class LabelStore:
    """All labels of one teacher in memory, looked up by data set row."""

    def __init__(
        self, manifest: LabelManifest, table: pl.DataFrame, dataset: Dataset, extraction: Extraction
    ) -> None:
        self.manifest, self.extraction = manifest, extraction
        keys = table["key"].to_numpy()
        if manifest.key == "event":
            self._place = np.full(len(dataset.items), -1, np.int64)
            self._place[keys] = np.arange(table.height)
        else:
            of_user = np.full(dataset.users, -1, np.int64)
            of_user[keys] = np.arange(table.height)
            self._place = of_user[dataset.user_rows()]
        self._arrays = {name: table[name].to_numpy() for name in table.columns if name != "key"}

    def __len__(self) -> int:
        return len(self._arrays["rest_log_sum"])

    def at(self, rows: torch.Tensor, device: torch.device | None = None) -> StoredLabels:
        """Return the labels of these data set rows, (positions,) int64 on the CPU, on a device.

        Raises LabelStoreError for a row without labels.
        """
        place = self._places(rows)

        def column(name: str, dtype: type[np.generic]) -> torch.Tensor:
            return torch.from_numpy(self._arrays[name][place].astype(dtype, copy=False)).to(device)

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
        return torch.from_numpy(self._arrays["state"][self._places(rows)].astype(np.float32)).to(
            device
        )

    def state_width(self) -> int:
        """Return the number of channels of the teacher's states. Raises LabelStoreError when none
        are stored.
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
        labels: NDArray[np.int64] = self._arrays["top_items"][:, 0].astype(np.int64)
        return labels

    def _places(self, rows: torch.Tensor) -> NDArray[np.int64]:
        place: NDArray[np.int64] = self._place[rows.numpy()]
        if (place < 0).any():
            raise LabelStoreError(
                f"no labels are stored for row {int(rows[int(np.argmin(place))])} of the data set",
                fix="extract the labels again",
            )
        return place


def shard_path(folder: Path, shard: int) -> Path:
    """Return the file of one shard."""
    return folder / f"labels-{shard:05d}.parquet"


def open_labels(folder: Path, dataset: Dataset) -> LabelStore:
    """Return the labels in a folder. Raises FileMissingError, and LabelStoreError when they are of
    another data set, of another format, or damaged.
    """
    record = LABELS.read(folder)
    manifest, extraction = record.about.labels, record.about.extraction
    if manifest.dataset_fingerprint != dataset.fingerprint():
        raise LabelStoreError(
            f"the labels in {folder} are of another data set",
            fix="extract them again",
            file=str(folder),
        )
    try:
        shards = [record.path(shard_path(folder, shard).name) for shard in range(manifest.shards)]
        table = pl.concat([pl.read_parquet(shard) for shard in shards])
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise LABELS.damaged(
            folder / LABELS.file, f"names shards that cannot be read: {problem}"
        ) from None
    if table.height != extraction.labels:
        raise LABELS.damaged(
            folder / LABELS.file,
            f"counts {extraction.labels:,} labels, its shards hold {table.height:,}",
        )
    return LabelStore(manifest, table, dataset, extraction)
