"""The bundle on disk: a folder that holds one student, ready to serve. No pickle, no torch, no dataframe library.

| file | what |
|---|---|
| manifest.json | format and model version, kind, encoders, identities, metrics, golden vectors, file hashes and sizes |
| weights.safetensors | the student's arrays, float32 |
| catalogue.safetensors | item ids, titles, popularity, attributes for filters |
| history.safetensors | optional user data: features, what they have done so far, what the teacher would recommend them |
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from distilrec.attributes import unpack_attributes
from distilrec.encoding import FeatureEncoder
from distilrec.errors import BundleCorruptedError, BundleMissingError, BundleVersionError, StorageError
from distilrec.texts import pack_texts, unpack_texts

FORMAT_VERSION = 2
WEIGHTS, CATALOGUE, HISTORY = "weights.safetensors", "catalogue.safetensors", "history.safetensors"
StudentKind = Literal["recurrent", "mlp", "soft_tree"]
Arrays = dict[str, NDArray[Any]]


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """name: of the file, where it is not the usual one."""

    sha256: str
    bytes: int
    name: str = ""


class Golden(msgspec.Struct, frozen=True):
    """A question and the answer that the training model gave: the engine must give the same."""

    items: tuple[int, ...]
    events: tuple[int, ...]
    user_features: tuple[tuple[int, float], ...]
    top_items: tuple[int, ...]
    top_scores: tuple[float, ...]


class Manifest(msgspec.Struct, frozen=True):
    """`model_version` is a hash over all other fields, which hold the hashes of the files."""

    kind: StudentKind
    dim: int
    items: int
    parameters: int
    event_types: tuple[str, ...]
    user_encoder: FeatureEncoder
    item_encoder: FeatureEncoder
    repeats: bool
    dataset: str
    dataset_fingerprint: str
    teacher: str
    metrics: dict[str, float]
    golden: tuple[Golden, ...]
    files: dict[str, FileEntry]
    distilrec: str
    format_version: int = FORMAT_VERSION
    model_version: str = ""

    def hashed(self) -> str:
        """The model version that belongs to this content. The history is user data, not part of the model."""
        files = {name: entry for name, entry in self.files.items() if name != HISTORY}
        plain = msgspec.structs.replace(self, model_version="", files=files)
        return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:16]


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory, checked: hashes, shapes and finite weights. `history` is empty when there is none."""

    folder: Path
    manifest: Manifest
    weights: Arrays
    catalogue: Arrays
    history: Arrays


def write_bundle(
    folder: Path, manifest: Manifest, weights: Arrays, catalogue: Arrays, history: Arrays | None
) -> Manifest:
    """Writes all files, then the manifest; gives the manifest with hashes and model version filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {}
    contents = {WEIGHTS: weights, CATALOGUE: catalogue, **({} if history is None else {HISTORY: history})}
    for name, arrays in contents.items():
        data = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
        (folder / name).write_bytes(data)
        files[name] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    for left_over in set(folder.glob("history*.safetensors")) - {folder / name for name in contents}:
        left_over.unlink()
    whole = msgspec.structs.replace(manifest, files=files)
    whole = msgspec.structs.replace(whole, model_version=whole.hashed())
    (folder / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    return whole


def read_bundle(folder: Path | str) -> Bundle:
    """A checked bundle. Raises BundleMissingError, BundleVersionError and BundleCorruptedError, each naming the file."""
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise BundleMissingError(
            f"there is no bundle in {folder} (no manifest.json)",
            fix="make one with `make demo`, or with `distilrec run` on your own data",
            file=str(path),
        )
    manifest = _read_manifest(path)
    loaded = {}
    for name in (WEIGHTS, CATALOGUE, HISTORY):
        if name in manifest.files:
            loaded[name] = _read_arrays(folder / (manifest.files[name].name or name), manifest.files[name])
        elif name != HISTORY:
            raise _corrupted(path, f"does not list {name}")
    bundle = Bundle(folder, manifest, loaded[WEIGHTS], loaded[CATALOGUE], loaded.get(HISTORY, {}))
    _check_arrays(bundle)
    return bundle


def erase_user(folder: Path | str, user_id: str) -> bool:
    """Takes one user out of a bundle's history; whether there was anything to take.

    Safe to interrupt: the new history gets a file of its own, then the manifest is replaced in one step, then the old
    file goes. The model version stays as it is. Raises what `read_bundle` raises, and StorageError.
    """
    folder = Path(folder)
    with _exclusive(folder):
        bundle = read_bundle(folder)
        users = unpack_texts("users", bundle.history) if bundle.history else []
        if user_id not in users:
            return False
        place, old = users.index(user_id), bundle.history
        start, stop = old["offsets"][place], old["offsets"][place + 1]
        history = {
            **{name: np.delete(array, place, axis=0) for name, array in old.items() if len(array) == len(users)},
            **{name: np.delete(old[name], np.s_[start:stop]) for name in ("items", "events")},
            **pack_texts("users", users[:place] + users[place + 1 :]),
            "offsets": np.concatenate([old["offsets"][: place + 1], old["offsets"][place + 2 :] - (stop - start)]),
            "end": old["end"],
        }
        data = save({name: np.ascontiguousarray(history[name]) for name in old})
        digest = hashlib.sha256(data).hexdigest()
        entry = FileEntry(digest, len(data), f"history-{digest[:16]}.safetensors")
        before = bundle.manifest.files[HISTORY].name or HISTORY
        _write_durably(folder / entry.name, data)
        manifest = msgspec.structs.replace(bundle.manifest, files={**bundle.manifest.files, HISTORY: entry})
        _write_durably(folder / "manifest.json.new", msgspec.json.format(msgspec.json.encode(manifest)))
        (folder / "manifest.json.new").replace(folder / "manifest.json")
        (folder / before).unlink(missing_ok=True)
    return True


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One process at a time changes a bundle."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
    except OSError as problem:
        raise StorageError(
            f"the bundle {folder} cannot be changed: {problem}",
            fix="make its folder writable for the service, or erase the user from its source and export it again",
            file=str(folder),
        ) from None


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(path: Path) -> Manifest:
    data = path.read_bytes()
    try:
        version = msgspec.json.decode(data, type=dict[str, Any]).get("format_version")
        if isinstance(version, int) and version != FORMAT_VERSION:
            upgrade = "upgrade distilrec (pip install -U distilrec)"
            raise BundleVersionError(
                f"{path} has format {version}; this distilrec reads {FORMAT_VERSION}",
                fix=f"{upgrade}, or export again" if version > FORMAT_VERSION else "train and export the student again",
                file=str(path),
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise _corrupted(path, f"is not a manifest: {problem}") from None
    if manifest.hashed() != manifest.model_version:
        raise _corrupted(path, "has been edited: its content does not match its model version")
    return manifest


def _read_arrays(path: Path, entry: FileEntry) -> Arrays:
    if not path.is_file():
        raise _corrupted(path, "is missing")
    data = path.read_bytes()
    if len(data) != entry.bytes:
        raise _corrupted(path, f"has {len(data)} bytes instead of {entry.bytes}: it is truncated or has been replaced")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _corrupted(path, "has been edited: its hash is not the one in the manifest")
    try:
        return load(data)
    except SafetensorError as problem:
        raise _corrupted(path, f"cannot be read: {problem}") from None


def _check_arrays(bundle: Bundle) -> None:
    m, w = bundle.manifest, bundle.weights
    shapes: dict[str, tuple[int, ...]] = {
        "vectors": (m.items, m.dim),
        "biases": (m.items,),
        "user_table": (m.user_encoder.width, m.dim),
        "item_table": (m.item_encoder.width, m.dim),
        **weight_shapes(m.kind, m.dim, len(m.event_types), w),
    }
    path = bundle.folder / WEIGHTS
    for name, shape in shapes.items():
        if name not in w:
            raise _corrupted(path, f"has no array {name!r}")
        if w[name].shape != shape or w[name].dtype != np.float32:
            raise _corrupted(path, f"array {name!r} is {w[name].shape} {w[name].dtype}, expected {shape} float32")
        if not np.isfinite(w[name]).all():
            raise _corrupted(path, f"array {name!r} holds NaN or infinity")
    for name in ("ids", "titles"):
        if len(bundle.catalogue.get(f"{name}.offsets", ())) != m.items + 1:
            raise _corrupted(bundle.folder / CATALOGUE, f"does not hold {m.items} {name}")
    try:
        unpack_attributes(bundle.catalogue, m.items)
    except (KeyError, ValueError) as problem:
        raise _corrupted(bundle.folder / CATALOGUE, f"holds attributes that do not fit: {problem}") from None
    if bundle.history:
        items, offsets = bundle.history.get("items"), bundle.history.get("offsets")
        if items is None or offsets is None or (len(items) and not 0 <= items.min() <= items.max() < m.items):
            raise _corrupted(bundle.folder / HISTORY, "holds items outside the catalogue")


def weight_shapes(kind: StudentKind, dim: int, event_types: int, weights: Arrays) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that only this kind of student has."""
    if kind == "recurrent":
        scales, wide = len(weights.get("decay", ())), len(weights.get("widen", ()))
        return {
            "gain": (event_types, dim),
            "decay": (scales, dim),
            "mix": (dim, scales * dim),
            "inner_norm": ((scales + 1) * dim,),
            "widen": (wide, (scales + 1) * dim),
            "widen_bias": (wide,),
            "narrow": (dim, wide),
            "narrow_bias": (dim,),
            "outer_norm": (dim,),
        }
    if kind == "soft_tree":
        nodes = len(weights.get("gate_bias", ()))
        inputs = dim - nodes - 1  # an item vector holds its channel of every leaf, then its inputs
        return {"gates": (nodes, 2 * inputs), "gate_bias": (nodes,), "log_totals": (nodes + 1,), "decays": (2,)}
    hidden = len(weights.get("readout", ()))
    return {
        "user_layer": (hidden, dim),
        "user_layer_bias": (hidden,),
        "item_layer": (hidden, dim),
        "readout": (hidden,),
    }


def _corrupted(path: Path, what: str) -> BundleCorruptedError:
    return BundleCorruptedError(f"{path} {what}", fix="copy or export the bundle again", file=str(path))
