"""From a trained student to a bundle. The training side of the format: this module may import
torch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from distilrec._version import __version__
from distilrec.bundle.format import (
    Arrays,
    Bundle,
    read_bundle,
    read_manifest,
    write_bundle,
    write_manifest,
)
from distilrec.bundle.manifest import GRAPH, Golden, Manifest, SearchInfo, SearchKind
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.engine.embedding import embed_bag
from distilrec.engine.order import TAIL
from distilrec.engine.runtimes.kinds import check_search, make_runtime, runtime_of
from distilrec.engine.search import build_graph
from distilrec.errors import ConfigError
from distilrec.features.attributes import pack_attributes
from distilrec.features.texts import pack_texts
from distilrec.files import locked
from distilrec.measure.ranking import Questions, rank
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.student import Student, kind_of
from distilrec.settings import Count, Settings
from distilrec.teachers.teacher import Teacher, as_teacher
from distilrec.training.trained import TrainedModel

_GOLDEN_LENGTHS = (0, 1, 5, 20, 80)
_GOLDEN_DEPTH = 10
_TEACHER_DEPTH = 20
_SCORES = 2**24  # of the teacher at once
_EXACT_UP_TO, _QUANTISED_UP_TO = 50_000, 200_000  # items: what `auto` chooses
_RECALL_DEPTH, _RECALL_USERS = 10, 500


class BundleConfig(Settings, frozen=True):
    """How the served student finds the best items."""

    search: SearchKind | Literal["auto"] = "auto"
    """`exact`, `quantised` (a scan in 8 bits), `graph` (HNSW), or `auto`, by the number of items.
    """
    connectivity: Count = 32
    """Neighbours of an item in the graph; more finds more and takes longer."""
    expansion_add: Count = 128
    """Candidates that are looked at while the graph is built."""
    expansion_search: Count = 96
    """Candidates that are looked at for an answer."""


def export_bundle(
    trained: TrainedModel,
    dataset: Dataset,
    folder: Path,
    *,
    teacher: Teacher | TrainedModel | None = None,
    metrics: dict[str, float] | None = None,
    with_history: bool = True,
    config: BundleConfig | None = None,
    before: Callable[[Manifest], None] = lambda manifest: None,
) -> Manifest:
    """Write a bundle; `with_history=False` leaves all user data out.

    teacher: whom the student learned from; its best items for every user go with the history, to be
    compared with.
    before: is called with the whole manifest before it is written: until then there is no bundle.
    Raises ConfigError for a model that is no student and for a search that this kind of student
    cannot do, and MissingExtraError where a graph is asked for and usearch is not installed.
    """
    student, kind = _student(trained), kind_of(trained.record.config)
    knows = None if teacher is None else as_teacher(teacher)
    weights = _weights(student)
    info = dataset.info
    with torch.inference_mode():
        weights["vectors"] = student.item_vectors().numpy()
        weights["biases"] = student.items.biases().numpy()
    search = choose_search(config or BundleConfig(), kind, dataset.catalogue_size)
    folder.mkdir(parents=True, exist_ok=True)
    next_graph = folder / f"{GRAPH}.next"  # the old one belongs to the bundle that is there
    if search.kind == "graph":
        search = msgspec.structs.replace(search, bias_unit=bias_unit(kind, weights))
        build_graph(weights["vectors"], weights["biases"], search, next_graph)
    manifest = Manifest(
        kind=kind,
        dim=weights["vectors"].shape[1],
        items=dataset.catalogue_size,
        parameters=student.parameter_count(),
        event_types=info.event_types,
        user_encoder=info.user_encoder,
        item_encoder=info.item_encoder,
        repeats=info.repeats,
        dataset=info.name,
        dataset_fingerprint=trained.record.dataset_fingerprint,
        teacher=knows.identity if knows else "",
        metrics=metrics or {},
        golden=tuple(_golden(student, dataset)),
        files={},
        distilrec=__version__,
        search=search,
        privacy=trained.record.privacy,
    )
    catalogue = pack_texts("ids", info.item_ids) | pack_texts("titles", info.titles)
    # Exact counts are not private
    popularity = dataset.popularity() * (trained.record.privacy is None)
    catalogue |= {"popularity": popularity} | pack_attributes(dataset.attributes)
    if search.kind != "exact":
        graph = next_graph if search.kind == "graph" else None
        recall, queries = search_recall(
            Bundle(folder, manifest, weights, catalogue, {}, graph), dataset
        )
        search = msgspec.structs.replace(search, recall=recall, queries=queries)
        manifest = msgspec.structs.replace(manifest, search=search)
    history = _history(dataset, knows) if with_history else None
    return write_bundle(folder, manifest, weights, catalogue, history, before, next_graph)


def choose_search(config: BundleConfig, kind: str, items: int) -> SearchInfo:
    """Return what `auto` stands for. Raises ConfigError for a search that this kind of student
    cannot do.
    """
    chosen = config.search
    if chosen == "auto":
        chosen = _search_for(items, runtime_of(kind).searches)
    check_search(chosen, kind, "bundle.search")
    if chosen != "graph":
        return SearchInfo(chosen)
    return SearchInfo(
        chosen,
        connectivity=config.connectivity,
        expansion_add=config.expansion_add,
        expansion_search=config.expansion_search,
    )


def _search_for(items: int, searches: Sequence[SearchKind]) -> SearchKind:
    if items > _QUANTISED_UP_TO and "graph" in searches and find_spec("usearch"):
        return "graph"
    return "quantised" if items > _EXACT_UP_TO and "quantised" in searches else "exact"


def bias_unit(kind: str, weights: Arrays) -> float:
    """Return half of the length of a query, `SearchInfo.bias_unit`."""
    return max(runtime_of(kind).query_length(weights) / 2, 1e-6)


def search_recall(bundle: Bundle, dataset: Dataset) -> tuple[float, int]:
    """Share of the exact ten best unseen items that the search of a bundle finds, and for how many
    users this was asked.
    """
    asked, exact = make_runtime(bundle), make_runtime(bundle, "exact")
    rng = np.random.default_rng(0)
    users = rng.choice(dataset.users, min(_RECALL_USERS, dataset.users), replace=False)
    histories = dataset.histories(users, dataset.offsets[users + 1])
    features, everything = dataset.user_features, np.zeros(0, np.uint8)
    found = wanted = 0
    for k, user in enumerate(users):
        state = exact.new_state()
        rows = slice(histories.offsets[k], histories.offsets[k + 1])
        exact.fold(state, histories.items[rows], histories.events[rows])
        known = embed_bag(
            zip(features.columns[user], features.weights[user], strict=True),
            bundle.weights["user_table"],
        )
        seen = np.zeros(0, np.int32) if dataset.info.repeats else histories.of(k)
        depth = min(_RECALL_DEPTH, dataset.catalogue_size)
        theirs, _ = exact.best(state, known, seen, everything, depth)
        ours, _ = asked.best(state, known, seen, everything, depth)
        found += len(np.intersect1d(ours, theirs))
        wanted += len(theirs)
    return found / max(wanted, 1), len(users)


def record_metrics(
    folder: Path,
    metrics: dict[str, float],
    before: Callable[[Manifest], None] = lambda manifest: None,
) -> Manifest:
    """Write measured metrics into the manifest of a bundle, which gets a new model version.

    before: is called with the whole manifest before it is written.
    """
    with locked(folder):
        measured = msgspec.structs.replace(read_manifest(folder / "manifest.json"), metrics=metrics)
        return write_manifest(folder, measured, before)


def holds(folder: Path, trained: TrainedModel) -> bool:
    """Return whether the weights in a bundle are those of this student."""
    weights, own = read_bundle(folder).weights, _weights(_student(trained))
    return all(
        name in weights and np.array_equal(weights[name], array) for name, array in own.items()
    )


def _student(trained: TrainedModel) -> Student:
    model = trained.model
    if not isinstance(model, Student):
        raise ConfigError(
            f"{type(model).__name__} is a teacher; only students can be exported",
            fix="distill a student first",
        )
    return model


def _weights(student: Student) -> Arrays:
    tensors = {
        **student.arrays(),
        "user_table": student.user_table(),
        "item_table": student.item_table(),
    }
    return {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}


def _history(dataset: Dataset, teacher: Teacher | None) -> Arrays:
    everyone = np.arange(dataset.users)
    histories = dataset.histories(everyone, dataset.offsets[1:])
    lists = {}
    if teacher:
        lists["teacher_items"] = teacher_lists(
            teacher, histories, dataset.info.repeats, dataset.catalogue_size
        )
    end = min(float(dataset.times.max(initial=0.0)), time.time())
    return {
        **lists,
        # Events that a service received long before this moment (seconds since 1970) are in the
        # histories; those from around it are compared with each user's last events, of which there
        # are `recent`.
        "end": np.array([end]),
        "recent": recent_events(dataset, end - TAIL),
        **pack_texts("users", dataset.info.user_ids),
        "user_columns": dataset.user_features.columns,
        "user_weights": dataset.user_features.weights,
        "offsets": histories.offsets,
        "items": histories.items,
        "events": histories.events,
    }


def recent_events(dataset: Dataset, since: float) -> NDArray[np.int32]:
    """Return how many events of each user's history have a time after `since`, (users,) int32."""
    counted = (dataset.times > since) & (dataset.items != UNKNOWN_ITEM)
    before = np.concatenate([[0], np.cumsum(counted)])
    recent: NDArray[np.int32] = np.diff(before[dataset.offsets]).astype(np.int32)
    return recent


def teacher_lists(
    teacher: Teacher, histories: Histories, repeats: bool, catalogue_size: int
) -> NDArray[np.int32]:
    """Return the teacher's best items for these users, best first, (users, depth) int32; -1 where
    there are fewer.
    """
    chunks = []
    step = max(1, _SCORES // catalogue_size)
    for start in range(0, len(histories), step):
        part = histories.select(start, start + step)
        scores = teacher.scores(part)
        if not repeats:
            for k in range(len(part)):
                scores[k, part.of(k)] = -np.inf
        depth = min(_TEACHER_DEPTH, catalogue_size)
        top = np.sort(np.argpartition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
        order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, 1)
        chunks.append(
            np.where(np.isneginf(np.take_along_axis(scores, top, 1)), -1, top).astype(np.int32)
        )
    return np.concatenate(chunks)


def _golden(student: Student, dataset: Dataset) -> list[Golden]:
    """Questions about made-up users (no user data goes into the manifest), answered by the training
    model.
    """
    rng = np.random.default_rng(0)
    lengths = [min(length, dataset.catalogue_size // 2) for length in _GOLDEN_LENGTHS]
    items = [
        rng.choice(dataset.catalogue_size, length, replace=False).astype(np.int32)
        for length in lengths
    ]
    width = dataset.user_features.width
    columns = rng.integers(max(width, 1), size=(len(lengths), 2 if width else 0)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.concatenate(items)
    events = rng.integers(len(dataset.info.event_types), size=len(flat)).astype(np.int32)
    histories = Histories(np.arange(len(lengths)), offsets, flat, events)
    stand_in = copy.deepcopy(student)
    stand_in.max_history = max(lengths) + 1
    projection = stand_in.user_features
    projection.columns = torch.from_numpy(columns.astype(np.int64))
    projection.weights = torch.ones(columns.shape)
    scorer = TorchScorer(stand_in)
    depth = min(_GOLDEN_DEPTH, dataset.catalogue_size - max(lengths))
    asked = Questions(
        histories, np.arange(len(lengths) + 1), np.zeros(len(lengths), np.int32), True, 0
    )
    top = rank(scorer, asked, depth).top
    scores = np.take_along_axis(scorer.scores(histories), top.astype(np.int64), 1)
    return [
        Golden(
            items=tuple(items[n].tolist()),
            events=tuple(events[offsets[n] : offsets[n + 1]].tolist()),
            user_features=tuple((int(column), 1.0) for column in columns[n]),
            top_items=tuple(top[n].tolist()),
            top_scores=tuple(scores[n].tolist()),
        )
        for n in range(len(lengths))
    ]
