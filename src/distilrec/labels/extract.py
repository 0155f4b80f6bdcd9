"""Extraction of a teacher's soft and hard labels, in batches, into the label store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, LabelStoreError, TeacherError
from distilrec.files import key_of, remove, unfinished, write_whole
from distilrec.labels.store import (
    FORMAT_VERSION,
    LABELS,
    AboutLabels,
    Extraction,
    LabelManifest,
    LabelStore,
    MappedArray,
    StoredLabels,
    find_array,
    index_path,
    index_size,
    open_labels,
    record_type,
    shard_path,
    write_array,
)
from distilrec.networks.batches import Windows, batch_of, training_windows
from distilrec.networks.orders import Ordered, Orders
from distilrec.settings import Count, Settings
from distilrec.teachers.teacher import Answer, Teacher, as_teacher, check_finite, move_teacher
from distilrec.training.devices import resolve_device
from distilrec.training.memory import reuse_freed_memory
from distilrec.training.options import RunOptions
from distilrec.training.scoring import MASKED_LOGIT, seen_so_far
from distilrec.training.trained import TrainedModel

_BATCH = 32
_BATCHES_PER_SHARD = 16
# Maximum number of logits that a teacher computes together: an array of them takes 32 MiB. Four
# times as many take a fourth longer, because no array stays in the caches
_LOGITS = 2**23
_LARGEST = 60_000.0  # about the largest float16; a masked item has the logit -_LARGEST
# Largest span of a teacher's scores in one row: the losses take 50,000 below the best for masked
LARGEST_SPAN = 49_000.0


class LabelConfig(Settings, frozen=True):
    """Which of the teacher's answers are stored."""

    top_k: Count = 100
    """Number of the teacher's best items that are stored for each event."""
    samples: Count = 100
    """Number of items, drawn uniformly, that are stored for each event."""
    states: bool = False
    """Whether the teacher's hidden layer is stored too, for the hint."""
    cold_items: bool = False
    """Whether labels cover items without training rows, which the teacher knows by their features.
    """
    orders: Count = 4
    """Number of random orders of the histories with labels, for a log without order, also without
    one of the events at the same time; the epochs use them in turn.
    """


def extract_labels(
    teacher: Teacher | TrainedModel,
    dataset: Dataset,
    folder: Path,
    config: LabelConfig,
    *,
    seed: int,
    mask_seen: bool = True,
    options: RunOptions | None = None,
    trained_from: NDArray[np.int64] | None = None,
) -> LabelStore:
    """Store the labels of all training rows that are to be predicted and whose item is in the
    catalogue, and return them. Labels that the folder already has are used again.

    trained_from: (users,), the row of each user before which none gets a label; all rows get one by
    default, and all users where a teacher is asked once per user.

    An extraction that was interrupted resumes after the last whole shard. A teacher that gives the
    same answer for all events of a user is asked once per user.

    options: workers, device and progress are used. Workers make the shards; progress reports the
    finished shards as "labels".
    Raises TeacherError when the teacher's logits are not finite, and ConfigError when
    `config.states` asks for states that it does not have.
    """
    reuse_freed_memory()
    options = options or RunOptions()
    teacher = as_teacher(teacher)
    # Half of each window is context: no label depends on only a few events of a long history
    context = teacher.max_history // 2
    windows = training_windows(dataset, teacher.max_history, context, trained_from)
    units = dataset.info.warm_users if teacher.per_user else len(windows.starts)
    manifest = _manifest(teacher, dataset, config, seed, mask_seen, units)
    chosen = [] if trained_from is None else [trained_from.tolist()]
    made_from = key_of(manifest, FORMAT_VERSION, *chosen)
    if LABELS.is_made(folder, made_from):
        options.progress.advance("labels", manifest.shards, manifest.shards)
        return open_labels(folder, dataset)
    begun = _begin(folder, made_from)
    began = time.perf_counter()
    task = _Task(
        teacher,
        dataset,
        folder.absolute(),
        manifest,
        windows,
        units,
        _BATCH,
        _BATCH * _BATCHES_PER_SHARD,
        options.device_of_shards(),
    )
    _make_missing_shards(task, options)
    labels = _write_index(folder, manifest, dataset)
    files = [*(shard_path(folder, shard) for shard in range(manifest.shards)), index_path(folder)]
    size = sum(file.stat().st_size for file in files)
    rows = dataset.target_rows()
    if trained_from is not None and not teacher.per_user:
        rows = rows[rows >= trained_from[dataset.user_rows()[rows]]]
    extraction = Extraction(labels, len(rows), size, time.perf_counter() - began)
    LABELS.write(folder, AboutLabels(manifest, extraction), files=files, made_from=made_from)
    remove([begun, *unfinished(folder)])
    return open_labels(folder, dataset)


def _make_missing_shards(task: _Task, options: RunOptions) -> None:
    folder, count = task.folder, task.manifest.shards
    missing = [shard for shard in range(count) if not shard_path(folder, shard).is_file()]
    before = count - len(missing)
    options.progress.advance("labels", before, count)
    try:
        for done, _ in enumerate(options.workers.map(_extract_shard, task, missing), start=1):
            options.progress.advance("labels", before + done, count)
    finally:
        move_teacher(task.teacher, torch.device("cpu"))


def _manifest(
    teacher: Teacher, dataset: Dataset, config: LabelConfig, seed: int, mask_seen: bool, units: int
) -> LabelManifest:
    """Return the manifest of the labels. Raises ConfigError when the teacher lacks states."""
    if config.states and not teacher.state_dim:
        raise ConfigError(
            "this teacher has no hidden layer to keep",
            fix="set labels.states = false",
            parameter="labels.states",
        )
    items = dataset.catalogue_size if config.cold_items else dataset.info.warm_items
    without_order = dataset.info.order != "time" and not teacher.per_user
    orders = config.orders if without_order else 0
    return LabelManifest(
        teacher.identity,
        dataset.fingerprint(),
        min(config.top_k, items),
        config.samples,
        seed,
        mask_seen and not dataset.info.repeats and not teacher.per_user,
        items,
        -(-units // (_BATCH * _BATCHES_PER_SHARD)) * (orders or 1),
        "user" if teacher.per_user else "event",
        teacher.state_dim if config.states else 0,
        orders,
    )


def _begin(folder: Path, made_from: str) -> Path:
    """Remove the shards of other labels, write the key of the new ones to a file, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, begun = folder / LABELS.file, folder / "unfinished"
    if path.is_file() or not (begun.is_file() and begun.read_bytes() == made_from.encode()):
        remove([path, begun])  # first, so that nothing names the shards when they go
        remove(
            [
                *folder.glob("labels-*.npy"),
                index_path(folder),
                # Of format 3 and earlier
                *folder.glob("labels-*.parquet"),
                folder / "extraction.json",
                folder / "unfinished.json",
            ]
        )
        write_whole(begun, made_from.encode())
    return begun


def _write_index(folder: Path, manifest: LabelManifest, dataset: Dataset) -> int:
    """Write which label each data set row, or user, has; return the number of labels."""
    index = np.full(index_size(manifest, dataset), -1, np.dtype("<i8"))
    labels = 0
    for shard in range(manifest.shards):
        records = _find_shard(shard_path(folder, shard), manifest).map()
        index[records["key"]] = np.arange(labels, labels + len(records))
        labels += len(records)
    write_array(index_path(folder), index)
    return labels


def _find_shard(shard: Path, manifest: LabelManifest) -> MappedArray:
    """Return a shard. Raises LabelStoreError for a damaged one, which is removed."""
    try:
        return find_array(shard, record_type(manifest))
    except (OSError, ValueError) as problem:
        remove([shard])
        raise LabelStoreError(
            f"{shard} cannot be read, and has been removed: {problem}",
            fix="run the same command again",
            file=str(shard),
        ) from None


@dataclass(frozen=True)
class _Task:
    """What a worker needs to make any shard. The shards of one order of the histories are
    consecutive.

    units: number of windows, or of users; batch: maximum number of units that the teacher is asked
    about together; per_shard: number of units in a shard; device: where a network answers.
    """

    teacher: Teacher
    dataset: Dataset
    folder: Path
    manifest: LabelManifest
    windows: Windows
    units: int
    batch: int
    per_shard: int
    device: str

    def place(self, shard: int) -> tuple[Ordered, range]:
        """Return the data set in the order of a shard, and the windows or users of the shard."""
        orders = Orders(self.manifest.seed, self.manifest.orders)
        order, part = divmod(shard, -(-self.units // self.per_shard))
        first = part * self.per_shard
        units = range(first, min(first + self.per_shard, self.units))
        return orders.of_labels(self.dataset, order), units


def _extract_shard(task: _Task, shard: int) -> None:
    """Write one shard. Its random numbers depend on (seed, shard) only, so every worker makes the
    same shard.
    """
    move_teacher(task.teacher, resolve_device(task.device))
    answers = _of_users if task.manifest.key == "user" else _of_events
    ordered, units = task.place(shard)
    rng = np.random.default_rng([task.manifest.seed, shard])
    records = []
    with torch.inference_mode():
        for batch in _batches(task, units.start, units.stop):
            for keys, answer in answers(task, ordered, batch):
                records.append(_label_records(keys, answer, task.manifest, rng))
    # Another worker may write the same shard
    write_array(shard_path(task.folder, shard), np.concatenate(records), own=f".{os.getpid()}")


def _batches(task: _Task, first: int, stop: int) -> Iterator[NDArray[np.int64]]:
    """Yield the windows, or users, from first to stop in batches of at most `task.batch` units and
    at most `_LOGITS` logits, but at least one unit.
    """
    windows, by_event = task.windows, task.manifest.key == "event"
    positions = (windows.stops - windows.scored)[first:stop] if by_event else np.ones(stop - first)
    largest = max(1, _LOGITS // task.dataset.catalogue_size)
    while first < stop:
        needed = np.cumsum(positions[: task.batch])
        number = max(1, int(np.searchsorted(needed, largest, side="right")))
        yield np.arange(first, first + number)
        first, positions = first + number, positions[number:]


def _of_events(
    task: _Task, ordered: Ordered, windows: NDArray[np.int64]
) -> Iterator[tuple[torch.Tensor, Answer]]:
    """Yield the keys of the events in these windows, and the teacher's answers before the events,
    in parts that fit into memory even where one window is too large.
    """
    dataset, items = ordered.dataset, task.manifest.catalogue
    chunk = max(1, _LOGITS // items)
    batch = batch_of(dataset, task.windows, windows, ordered.keys)
    all_windows, all_positions = (batch.targets >= 0).nonzero(as_tuple=True)
    for window, position in zip(
        torch.split(all_windows, chunk), torch.split(all_positions, chunk), strict=True
    ):
        answer = task.teacher.answer(batch, window, position, items)
        seen = (
            seen_so_far(batch, dataset.catalogue_size, window, position).among(slice(items))
            if task.manifest.mask_seen
            else None
        )
        yield batch.rows[window, position], _relative(answer, seen, batch.users[window], dataset)


def _of_users(
    task: _Task, ordered: Ordered, users: NDArray[np.int64]
) -> Iterator[tuple[torch.Tensor, Answer]]:
    """Yield these users, and the teacher's answers after all their training events."""
    dataset = ordered.dataset
    scores = task.teacher.scores(dataset.histories(users, dataset.train_end[users]))
    answer = Answer(torch.from_numpy(scores[:, : task.manifest.catalogue]))
    keys = torch.from_numpy(users)
    yield keys, _relative(answer, None, keys, dataset)


def _relative(
    answer: Answer, seen: torch.Tensor | None, users: torch.Tensor, dataset: Dataset
) -> Answer:
    """Return the same answer with logits z - max z in float32, where the maximum is over the items
    that are not masked; masked items get MASKED_LOGIT.

    seen: (positions, items) bool, True for masked items. Raises TeacherError for NaN, infinities,
    and scores that differ too much for float16.
    """
    logits = answer.logits
    check_finite(logits)
    if answer.states is not None and (answer.states.abs() > _LARGEST).any():
        raise TeacherError(
            f"the teacher's hidden layer holds {float(answer.states.abs().max()):,.0f}; labels "
            f"keep at most {_LARGEST:,.0f}",
            fix="set labels.states = false, or train the teacher with smaller weights",
        )
    seen = None if seen is None else seen.to(logits.device)
    allowed = logits if seen is None else logits.masked_fill(seen, -torch.inf)
    highest = allowed.amax(1, keepdim=True)
    # Infinite where a user has had every item
    shifted = logits - torch.where(torch.isfinite(highest), highest, 0.0)
    if seen is not None:
        shifted = shifted.masked_fill(seen, 0.0)
    lowest, item = shifted.min(1)
    if (lowest < -LARGEST_SPAN).any():
        row = int(lowest.argmin())
        user = dataset.info.user_ids[int(users[row])]
        raise TeacherError(
            f"the teacher's scores for user {user!r} span {-float(lowest[row]):,.0f}, from the "
            "best to item "
            f"{dataset.info.item_ids[int(item[row])]!r}; labels keep what is at most "
            f"{LARGEST_SPAN:,.0f} below the best",
            fix="divide the scores by a constant: a softmax over them should be what the teacher "
            "believes; or give ranks",
            user=user,
        )
    shifted = shifted if seen is None else shifted.masked_fill(seen, MASKED_LOGIT)
    return Answer(shifted.float(), answer.states)


def _label_records(
    keys: torch.Tensor, answer: Answer, manifest: LabelManifest, rng: np.random.Generator
) -> NDArray[Any]:
    """Return one record per key. The logits of masked items stay very low."""
    logits = answer.logits.float().cpu()
    drawn = rng.integers(manifest.catalogue, size=(len(logits), manifest.samples))
    labels = best_and_drawn(logits, manifest.top_k, torch.from_numpy(drawn))
    records = np.empty(len(keys), record_type(manifest))
    records["key"] = keys.numpy()
    records["top_items"] = labels.top_items.numpy()
    records["top_logits"] = _half(labels.top_logits)
    records["rest_log_sum"] = labels.rest_log_sum.numpy()
    records["sample_items"] = labels.sample_items.numpy()
    records["sample_logits"] = _half(labels.sample_logits)
    if manifest.states:
        assert answer.states is not None
        records["state"] = _half(answer.states)
    return records


def best_and_drawn(logits: torch.Tensor, top_k: int, drawn: torch.Tensor) -> StoredLabels:
    """Return the labels of a teacher's logits, (positions, items) float32.

    drawn: the items that were drawn uniformly, (positions, M) int64.
    """
    top = torch.topk(logits, top_k)
    rest = logits.scatter(1, top.indices, -torch.inf).logsumexp(1)
    return StoredLabels(
        top.indices, top.values, rest.clamp(min=-1e30).float(), drawn, logits.gather(1, drawn)
    )


def _half(values: torch.Tensor) -> NDArray[np.float16]:
    """Return values as float16; only masked logits are out of its range."""
    half: NDArray[np.float16] = values.clamp(-_LARGEST, _LARGEST).half().cpu().numpy()
    return half
