"""From a trained student to a bundle. The training side of the format: this module may import
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray
from torch import Tensor

from distilrec._version import __version__
from distilrec.bundle.contents import BundleCatalogue, BundleWeights
from distilrec.bundle.format import (
    Bundle,
    read_bundle,
    read_manifest,
    write_bundle,
    write_manifest,
)
from distilrec.bundle.manifest import (
    CONTEXT,
    GRAPH,
    Calibration,
    Manifest,
    SearchInfo,
    format_of,
)
from distilrec.data.dataset import Dataset
from distilrec.engine.search import build_graph
from distilrec.errors import ConfigError
from distilrec.export.calibration import calibrate
from distilrec.export.golden import golden_answers
from distilrec.export.history import history_of
from distilrec.export.search import BundleConfig, bias_unit, choose_search, search_recall
from distilrec.features.attributes import pack_attributes
from distilrec.files import locked
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.student import Student, kind_of
from distilrec.targets import Role, Targets
from distilrec.teachers.teacher import Teacher, as_teacher
from distilrec.training.trained import TrainedModel


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
    kind = kind_of(trained.record.config)
    weights = _weights(_student(trained))
    knows = None if teacher is None else as_teacher(teacher)
    search = choose_search(config or BundleConfig(), kind, dataset.catalogue_size)
    folder.mkdir(parents=True, exist_ok=True)
    next_graph = folder / f"{GRAPH}.next"  # the old one belongs to the bundle that is there
    if search.kind == "graph":
        search = msgspec.structs.replace(search, bias_unit=bias_unit(kind, weights))
        build_graph(weights.vectors, weights.biases, search, next_graph)
    manifest = msgspec.structs.replace(
        _manifest(trained, dataset, weights, search),
        teacher=knows.identity if knows else "",
        metrics=metrics or {},
    )
    catalogue = _catalogue(dataset, private=trained.record.privacy is not None)
    if search.kind != "exact":
        graph = next_graph if search.kind == "graph" else None
        recall, queries = search_recall(
            Bundle(folder, manifest, weights, catalogue, None, graph), dataset
        )
        search = msgspec.structs.replace(search, recall=recall, queries=queries)
        manifest = msgspec.structs.replace(manifest, search=search)
    history = history_of(dataset, knows, manifest) if with_history else None
    return write_bundle(folder, manifest, weights, catalogue, history, before, next_graph)


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
    weights, student = read_bundle(folder).weights.pack(), _student(trained)
    own = {
        **student.arrays(),
        "user_table": student.user_table(),
        "item_table": student.item_table(),
    }
    return all(
        name in weights and np.array_equal(weights[name], _array(tensor))
        for name, tensor in own.items()
    )


def _student(trained: TrainedModel) -> Student:
    model = trained.model
    if not isinstance(model, Student):
        raise ConfigError(
            f"{type(model).__name__} is a teacher; only students can be exported",
            fix="distill a student first",
        )
    return model


def _weights(student: Student) -> BundleWeights:
    with torch.inference_mode():
        vectors, biases = student.item_vectors().numpy(), student.items.biases().numpy()
    return BundleWeights(
        vectors=vectors,
        biases=biases,
        user_table=_array(student.user_table()),
        item_table=_array(student.item_table()),
        of_kind={name: _array(tensor) for name, tensor in student.arrays().items()},
    )


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().contiguous().numpy()
    return array


def _manifest(
    trained: TrainedModel, dataset: Dataset, weights: BundleWeights, search: SearchInfo
) -> Manifest:
    info, record, student = dataset.info, trained.record, _student(trained)
    return Manifest(
        kind=kind_of(record.config),
        dim=weights.vectors.shape[1],
        items=dataset.catalogue_size,
        parameters=student.parameter_count(),
        event_types=info.event_types,
        user_encoder=info.user_encoder,
        item_encoder=info.item_encoder,
        repeats=info.repeats,
        dataset=info.name,
        dataset_fingerprint=record.dataset_fingerprint,
        teacher="",
        metrics={},
        golden=tuple(golden_answers(student, dataset)),
        files={},
        distilrec=__version__,
        search=search,
        privacy=record.privacy,
        format_version=format_of(weights.of_kind, roles=info.targets is not None),
        timezone=UNSET if student.timezone is None else student.timezone,
        visit_gap=student.visit_gap or UNSET,
        roles=UNSET if info.targets is None else _roles(info.targets, info.event_types),
        context_encoder=info.context_encoder if CONTEXT in weights.of_kind else UNSET,
        calibration=_calibration(trained, dataset),
    )


def _calibration(trained: TrainedModel, dataset: Dataset) -> Calibration | UnsetType:
    """Return the temperature of a student; none of a private one: the privacy that was spent does
    not cover what would be learned from validation events.
    """
    if trained.record.privacy is not None:
        return UNSET
    return calibrate(TorchScorer(_student(trained)), dataset) or UNSET


def _roles(targets: Targets, event_types: Sequence[str]) -> tuple[Role, ...]:
    """Return the role of each event type; one that is not named only informs."""
    named = targets.roles()
    return tuple(named.get(name, "inform") for name in event_types)


def _catalogue(dataset: Dataset, *, private: bool) -> BundleCatalogue:
    """Return the items of a data set. private: without the exact counts of their training rows."""
    return BundleCatalogue(
        ids=list(dataset.info.item_ids),
        titles=list(dataset.info.titles),
        popularity=dataset.popularity() * (not private),
        attributes=pack_attributes(dataset.attributes),
    )
