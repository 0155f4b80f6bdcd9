"""From a trained student to a bundle. The training side of the format: this module may import torch."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from distilrec._version import __version__
from distilrec.attributes import pack_attributes
from distilrec.bundle.format import (
    Arrays,
    Golden,
    Manifest,
    StudentKind,
    read_bundle,
    write_bundle,
)
from distilrec.data.dataset import Dataset, Histories
from distilrec.encoding import FeatureMatrix
from distilrec.errors import ConfigError
from distilrec.evaluate.ranking import Questions, rank
from distilrec.models import TrainedModel
from distilrec.students.mlp import Mlp
from distilrec.students.recurrent import Recurrent
from distilrec.students.soft_tree import SoftTree
from distilrec.teachers.teacher import Teacher, as_teacher
from distilrec.texts import pack_texts
from distilrec.training.model import FeatureProjection, SequenceModel, TorchScorer

_GOLDEN_LENGTHS = (0, 1, 5, 20, 80)
_GOLDEN_DEPTH = 10
_TEACHER_DEPTH = 20
_CHUNK = 256  # users per pass of the teacher


def export_bundle(
    trained: TrainedModel,
    dataset: Dataset,
    folder: Path,
    *,
    teacher: Teacher | TrainedModel | None = None,
    metrics: dict[str, float] | None = None,
    with_history: bool = True,
) -> Manifest:
    """Writes a bundle; `with_history=False` leaves all user data out.

    teacher: whom the student learned from; its best items for every user go with the history, to be compared with.
    Raises ConfigError for a model that is no student.
    """
    student = trained.model
    knows = None if teacher is None else as_teacher(teacher)
    weights = _weights(student)
    info = dataset.info
    with torch.inference_mode():
        weights["vectors"] = _item_vectors(student)
        weights["biases"] = student.items.biases().numpy()
    manifest = Manifest(
        kind=_kind(student),
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
    )
    catalogue = pack_texts("ids", info.item_ids) | pack_texts("titles", info.titles)
    catalogue |= {"popularity": dataset.popularity()} | pack_attributes(dataset.attributes)
    return write_bundle(folder, manifest, weights, catalogue, _history(dataset, knows) if with_history else None)


def record_metrics(folder: Path, metrics: dict[str, float]) -> Manifest:
    """Writes measured metrics into the manifest of a bundle, which gets a new model version."""
    bundle = read_bundle(folder)
    manifest = msgspec.structs.replace(bundle.manifest, metrics=metrics)
    return write_bundle(folder, manifest, bundle.weights, bundle.catalogue, bundle.history or None)


def _kind(student: SequenceModel) -> StudentKind:
    match student:
        case Recurrent():
            return "recurrent"
        case SoftTree():
            return "soft_tree"
        case _:
            return "mlp"


def _item_vectors(student: SequenceModel) -> NDArray[np.float32]:
    """v_i; for a tree, its channel of every leaf and then its inputs X_i, (items, leaves + C)."""
    vectors = student.items.vectors()
    if isinstance(student, SoftTree):
        vectors = torch.cat([vectors, student.item_inputs], dim=1)
    return vectors.numpy()


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().contiguous().numpy()
    return array


def _weights(student: SequenceModel) -> Arrays:
    match student:
        case Recurrent():
            own = {
                "gain": student.gain,
                "decay": torch.sigmoid(student.theta),
                "mix": student.mix.weight,
                "inner_norm": student.inner_norm.weight,
                "widen": student.widen.weight,
                "widen_bias": student.widen.bias,
                "narrow": student.narrow.weight,
                "narrow_bias": student.narrow.bias,
                "outer_norm": student.outer_norm.weight,
                "user_table": student.user_features.table,
            }
        case Mlp():
            own = {
                "user_layer": student.user_layer.weight,
                "user_layer_bias": student.user_layer.bias,
                "item_layer": student.item_layer.weight,
                "readout": student.readout,
                "user_table": student.user_features.table,
            }
        case SoftTree():
            own = {
                "gates": student.gates,
                "gate_bias": student.gate_bias,
                "log_totals": student.log_totals(),
                "decays": student.decays[:, 0],
                # U f_u moves the gates: it takes the first channels of a user vector.
                "user_table": functional.pad(student.user_features.table, (0, 1 + student.item_inputs.shape[1])),
            }
        case _:
            raise ConfigError(
                f"{type(student).__name__} is a teacher; only students can be exported", fix="distil a student first"
            )
    own["item_table"] = student.items.features.table
    if isinstance(student, SoftTree):  # features give a new item its channels in the leaves and its inputs
        width, inputs = len(own["item_table"]), student.item_inputs.shape[1]
        own["item_table"] = torch.cat([own["item_table"], torch.eye(width, inputs)], dim=1)
    return {name: _array(tensor) for name, tensor in own.items()}


def _history(dataset: Dataset, teacher: Teacher | None) -> Arrays:
    everyone = np.arange(dataset.users)
    histories = dataset.histories(everyone, dataset.offsets[1:])
    lists = {"teacher_items": teacher_lists(teacher, histories, dataset.info.repeats)} if teacher else {}
    return {
        **lists,
        # Events that a service received up to this moment (seconds since 1970) are already in the histories.
        "end": np.array([min(float(dataset.times.max(initial=0.0)), time.time())]),
        **pack_texts("users", dataset.info.user_ids),
        "user_columns": dataset.user_features.columns,
        "user_weights": dataset.user_features.weights,
        "offsets": histories.offsets,
        "items": histories.items,
        "events": histories.events,
    }


def teacher_lists(teacher: Teacher, histories: Histories, repeats: bool) -> NDArray[np.int32]:
    """The teacher's best items for these users, best first, (users, depth) int32; -1 where there are fewer."""
    chunks = []
    for start in range(0, len(histories), _CHUNK):
        part = histories.select(start, start + _CHUNK)
        scores = teacher.scores(part)
        if not repeats:
            for k in range(len(part)):
                scores[k, part.of(k)] = -np.inf
        top = np.argsort(-scores, axis=1, kind="stable")[:, :_TEACHER_DEPTH]
        chunks.append(np.where(np.isneginf(np.take_along_axis(scores, top, 1)), -1, top).astype(np.int32))
    return np.concatenate(chunks)


def _golden(student: SequenceModel, dataset: Dataset) -> list[Golden]:
    """Questions about made-up users (no user data goes into the manifest), answered by the training model."""
    rng = np.random.default_rng(0)
    lengths = [min(length, dataset.catalogue_size // 2) for length in _GOLDEN_LENGTHS]
    items = [rng.choice(dataset.catalogue_size, length, replace=False).astype(np.int32) for length in lengths]
    width = dataset.user_features.width
    columns = rng.integers(max(width, 1), size=(len(lengths), 2 if width else 0)).astype(np.int32)
    bags = FeatureMatrix(columns, np.ones(columns.shape, np.float32), width)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.concatenate(items)
    events = rng.integers(len(dataset.info.event_types), size=len(flat)).astype(np.int32)
    histories = Histories(np.arange(len(lengths)), offsets, flat, events)
    stand_in = copy.deepcopy(student)
    stand_in.max_history = max(lengths) + 1
    projection = stand_in.user_features
    assert isinstance(projection, FeatureProjection)
    projection.columns = torch.from_numpy(bags.columns.astype(np.int64))
    projection.weights = torch.from_numpy(bags.weights)
    scorer = TorchScorer(stand_in)
    depth = min(_GOLDEN_DEPTH, dataset.catalogue_size - max(lengths))
    asked = Questions(histories, np.arange(len(lengths) + 1), np.zeros(len(lengths), np.int32), True, 0)
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
