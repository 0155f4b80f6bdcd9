"""Extraction of a teacher's soft and hard labels, in batches, into the label store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, LabelStoreError
from distilrec.knowledge.store import LabelManifest, LabelStore, open_labels, shard_path
from distilrec.models import TrainedModel
from distilrec.training.batches import training_batches, training_windows
from distilrec.training.trainer import MASKED_LOGIT, seen_items

_BATCH = 32
_BATCHES_PER_SHARD = 16
_FLOAT16_MIN = -60_000.0


class LabelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """top_k: how many of the teacher's best items to keep per event; samples: how many uniformly drawn others."""

    top_k: int = 100
    samples: int = 100

    def __post_init__(self) -> None:
        for name in ("top_k", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"labels.{name} is {getattr(self, name)}", fix="use at least 1", parameter=name)


def extract_labels(
    teacher: TrainedModel,
    dataset: Dataset,
    folder: Path,
    config: LabelConfig,
    *,
    seed: int,
    mask_seen: bool = True,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> LabelStore:
    """Labels of all training rows whose item is in the catalogue; labels already there are used again.

    on_batch: is called with the number of finished and of all batches.
    Raises LabelStoreError when the teacher's logits are not finite.
    """
    model = teacher.model
    model.eval()
    mask_seen = mask_seen and not dataset.info.repeats
    # Half of each window is context: no label comes from a teacher that saw only a few events of a long history.
    windows = training_windows(dataset, model.max_history, context=model.max_history // 2)
    batches = -(-len(windows.starts) // _BATCH)
    items = dataset.info.warm_items
    manifest = LabelManifest(
        teacher.record.identity,
        dataset.fingerprint(),
        min(config.top_k, items),
        config.samples,
        seed,
        mask_seen,
        items,
        -(-batches // _BATCHES_PER_SHARD),
    )
    path = folder / "manifest.json"
    if path.is_file() and path.read_bytes() == msgspec.json.encode(manifest):
        on_batch(batches, batches)
        return open_labels(folder, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (path, *folder.glob("labels-*.parquet")):
        old.unlink(missing_ok=True)
    rng = np.random.default_rng(seed)
    shard: list[pl.DataFrame] = []
    with torch.inference_mode():
        vectors = model.items.vectors()
        for number, batch in enumerate(training_batches(dataset, windows, _BATCH, None), start=1):
            window, position = (batch.targets >= 0).nonzero(as_tuple=True)
            hidden = model.encode(batch, vectors)[window, position]
            logits = model.score(hidden, vectors[:items], model.items.bias)  # (positions, items)
            if not torch.isfinite(logits).all():
                raise LabelStoreError("the teacher's logits are not finite", fix="train the teacher again")
            if mask_seen:
                logits = logits.masked_fill(seen_items(batch, model.items, window, position), MASKED_LOGIT)
            shard.append(_label_table(logits, batch.rows[window, position], manifest, rng))
            if number % _BATCHES_PER_SHARD == 0 or number == batches:
                pl.concat(shard).write_parquet(shard_path(folder, (number - 1) // _BATCHES_PER_SHARD))
                shard.clear()
            on_batch(number, batches)
    path.write_bytes(msgspec.json.encode(manifest))
    return open_labels(folder, dataset)


def _label_table(
    logits: torch.Tensor, rows: torch.Tensor, manifest: LabelManifest, rng: np.random.Generator
) -> pl.DataFrame:
    """One shard row per position. Masked items keep a very low logit: no label falls on them."""
    top = torch.topk(logits, manifest.top_k)
    rest = logits.scatter(1, top.indices, -torch.inf).logsumexp(1)
    sample = torch.from_numpy(rng.integers(manifest.catalogue, size=(len(logits), manifest.samples)))
    half = {
        name: value.clamp(min=_FLOAT16_MIN).half().numpy()
        for name, value in (("top", top.values), ("sample", logits.gather(1, sample)))
    }
    return pl.DataFrame(
        {
            "row": rows.numpy(),
            "top_items": top.indices.int().numpy(),
            "top_logits": half["top"],
            "rest_log_sum": rest.clamp(min=-1e30).float().numpy(),
            "sample_items": sample.int().numpy(),
            "sample_logits": half["sample"],
        },
        schema={
            "row": pl.Int64,
            "top_items": pl.Array(pl.Int32, manifest.top_k),
            "top_logits": pl.Array(pl.Float16, manifest.top_k),
            "rest_log_sum": pl.Float32,
            "sample_items": pl.Array(pl.Int32, manifest.samples),
            "sample_logits": pl.Array(pl.Float16, manifest.samples),
        },
    )
