"""From a bundle to the ONNX files of its student: two graphs, and a JSON file that says what their
numbers mean. docs/onnx.md describes them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from distilrec._version import __version__
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import FileEntry, Golden, Manifest, hidden_in
from distilrec.engine.items import Floats
from distilrec.engine.time_inputs import NEVER
from distilrec.engine.visits import events_of_visit, of_question
from distilrec.errors import BundleCorruptedError, ConfigError, MissingExtraError, StorageError
from distilrec.features.encoding import FeatureEncoder
from distilrec.files import write_json, write_whole
from distilrec.targets import Role
from distilrec.zones import zone_named

ONNX_VERSION = 1
FOLD, SCORES, STUDENT = "fold.onnx", "scores.onnx", "student.json"
KINDS = ("recurrent",)
"""The kinds of students that can be written as ONNX graphs."""
TOLERANCE = 1e-4
"""How far a score may be from a golden one, absolute plus relative."""
_LARGEST = 2**31 - 2**20  # bytes of a graph, which is one message of Protocol Buffers


class OnnxStudent(msgspec.Struct, frozen=True):
    """The content of `student.json`.

    state: floats in the state of a user; opset: of the graphs; items, titles: by position;
    golden, tolerance: what a client can test itself with. The other fields are those of the
    manifest of the bundle.
    """

    format_version: int
    model_version: str
    distilrec: str
    kind: str
    opset: int
    state: int
    event_types: tuple[str, ...]
    user_encoder: FeatureEncoder
    repeats: bool
    files: dict[str, FileEntry]
    tolerance: float
    golden: tuple[Golden, ...]
    items: list[str]
    titles: list[str]
    timezone: str | UnsetType = UNSET
    visit_gap: float | UnsetType = UNSET
    roles: tuple[Role, ...] | UnsetType = UNSET
    context_encoder: FeatureEncoder | UnsetType = UNSET


class OnnxReport(msgspec.Struct, frozen=True):
    """What an export did. bytes: of all files; largest: the largest difference from a score of a
    golden answer, as onnxruntime computes it.
    """

    bytes: int
    largest: float


def write_onnx(bundle: Bundle, folder: Path | str) -> OnnxReport:
    """Write `fold.onnx`, `scores.onnx` and `student.json`, once onnxruntime has reproduced the
    golden answers from the two graphs.

    No data about users are in them. Raises ConfigError for a kind of student that has no graphs
    and for one that is too large, MissingExtraError without onnx or onnxruntime,
    BundleCorruptedError where onnxruntime answers otherwise than the bundle, and StorageError
    where the folder cannot be written; then nothing is written.
    """
    folder = Path(folder)
    _check(bundle)
    graphs = _graphs(bundle)
    largest = _verified(graphs, bundle)
    entries = {
        name: FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        for name, data in graphs.items()
    }
    student = _student(bundle, entries)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in graphs.items():
            write_whole(folder / name, data)
        write_json(folder / STUDENT, student)  # the last, with the hashes of the others
    except OSError as problem:
        raise StorageError(
            f"{folder} cannot be written: {problem.strerror}",
            fix="give the bundle a place beside which files can be written",
            file=str(folder),
        ) from None
    size = sum(entry.bytes for entry in entries.values()) + (folder / STUDENT).stat().st_size
    return OnnxReport(size, largest)


def _check(bundle: Bundle) -> None:
    kind, weights = bundle.manifest.kind, bundle.weights
    if kind not in KINDS:
        raise ConfigError(
            f"a student of kind {kind!r} cannot be exported to ONNX",
            fix=f"train a student of kind: {', '.join(KINDS)}",
            parameter="student.kind",
        )
    size = 4 * sum(array.size for array in weights.pack().values())
    if size > _LARGEST:
        raise ConfigError(
            f"the student has {size:,} bytes; an ONNX file holds at most {_LARGEST:,}",
            fix="train a student of fewer channels (dim), or serve the bundle",
            parameter="student.dim",
        )


def _onnxruntime() -> Any:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise MissingExtraError(
            "ONNX files need the packages onnx and onnxruntime",
            fix='pip install "distilrec[onnx]"',
        ) from None
    del onnx  # the module of the graphs uses it
    return onnxruntime


def _graphs(bundle: Bundle) -> dict[str, bytes]:
    """Return the bytes of both graphs by the names of their files."""
    _onnxruntime()
    from distilrec.engine.onnx_graphs import fold_graph, scores_graph

    m = bundle.manifest
    metadata = {
        "format_version": str(ONNX_VERSION),
        "model_version": m.model_version,
        "distilrec": __version__,
        "kind": m.kind,
        "weights_sha256": hashlib.sha256(_weights(bundle)).hexdigest(),
    }
    made = {FOLD: fold_graph(bundle, metadata), SCORES: scores_graph(bundle, metadata)}
    return {name: graph.SerializeToString(deterministic=True) for name, graph in made.items()}


def _weights(bundle: Bundle) -> bytes:
    """Return the names and numbers of all arrays, in the order of their names."""
    arrays = sorted(bundle.weights.pack().items())
    return b"".join(name.encode() + b"\0" + array.tobytes() for name, array in arrays)


def _student(bundle: Bundle, files: dict[str, FileEntry]) -> OnnxStudent:
    from distilrec.engine.onnx_graphs import OPSET, state_width

    m, catalogue = bundle.manifest, bundle.catalogue
    return OnnxStudent(
        format_version=ONNX_VERSION,
        model_version=m.model_version,
        distilrec=__version__,
        kind=m.kind,
        opset=OPSET,
        state=state_width(bundle),
        event_types=m.event_types,
        user_encoder=m.user_encoder,
        repeats=m.repeats,
        files=files,
        tolerance=TOLERANCE,
        golden=m.golden,
        items=catalogue.ids,
        titles=catalogue.titles,
        timezone=m.timezone,
        visit_gap=m.visit_gap,
        roles=m.roles,
        context_encoder=m.context_encoder,
    )


def _verified(graphs: dict[str, bytes], bundle: Bundle) -> float:
    """Return the largest difference from a golden score. Raises BundleCorruptedError."""
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    fold, scores = (
        runtime.InferenceSession(graphs[name], options, providers=["CPUExecutionProvider"])
        for name in (FOLD, SCORES)
    )
    width = fold.get_inputs()[0].shape[1]
    largest = 0.0
    for golden in bundle.manifest.golden:
        state = np.zeros((1, width), np.float32)
        for event in _events(golden):
            (state,) = fold.run(None, {"state": state, **event})
        (found,) = scores.run(None, {"state": state, **_question(golden, bundle.manifest)})
        largest = max(largest, _difference(found[0], golden, bundle))
    return largest


def _events(golden: Golden) -> Iterator[dict[str, Any]]:
    for item, event_type in zip(golden.items, golden.events, strict=True):
        yield {"item": np.array([item]), "event_type": np.array([event_type])}


def _question(golden: Golden, m: Manifest) -> dict[str, Any]:
    """Return the inputs of `scores.onnx` besides the state, for one golden question."""
    inputs: dict[str, Any] = {}
    bags = {"user": golden.user_features} if m.user_encoder.width else {}
    if m.context_encoder is not UNSET and m.context_encoder.width and golden.context is not UNSET:
        bags["context"] = golden.context
    for name, bag in bags.items():
        inputs[f"{name}_columns"] = np.array([[column for column, _ in bag]], np.int64)
        inputs[f"{name}_weights"] = np.array([[weight for _, weight in bag]], np.float32)
    if m.timezone is not UNSET and golden.now is not UNSET and golden.times is not UNSET:
        now = math.floor(golden.now)
        gap = max(now - math.floor(golden.times[-1]), 0) if golden.times else -1
        local = now + zone_named(m.timezone).offset(now)
        inputs["gap"], inputs["local_time"] = np.array([gap]), np.array([int(local)])
    if m.visit_gap is not UNSET and golden.now is not UNSET and golden.times is not UNSET:
        last = golden.times[-1] if golden.times else NEVER
        visit = events_of_visit(golden.times, m.visit_gap)
        inputs["visit"] = np.array([of_question(visit, last, golden.now, m.visit_gap)])
    return inputs


def _difference(found: Floats, golden: Golden, bundle: Bundle) -> float:
    """Return how far the scores are from those of an answer. Raises BundleCorruptedError where
    that is beyond the tolerance, or where other items would be the best.
    """
    expected = np.array(golden.top_scores, np.float32)
    own = found[list(golden.top_items)]
    unseen = found.copy()
    unseen[list(hidden_in(golden, bundle.manifest))] = -np.inf
    best = np.sort(unseen)[::-1][: len(expected)]
    if not all(np.allclose(scores, expected, TOLERANCE, TOLERANCE) for scores in (own, best)):
        raise BundleCorruptedError(
            f"onnxruntime does not reproduce the golden answers of {bundle.folder} "
            f"({own.tolist()[:3]} instead of {expected.tolist()[:3]})",
            fix="upgrade onnx and onnxruntime, and export again",
            file=str(bundle.folder),
        )
    return float(np.abs(own - expected).max(initial=0.0))
