"""The bundle on disk: a folder that holds one student, ready to serve. No pickle, no torch, no
dataframe library.

| file | what |
|---|---|
| manifest.json | versions, kind, encoders, identities, metrics, golden answers, hashes |
| weights.safetensors | the student's arrays, float32 |
| catalogue.safetensors | item ids, titles, popularity, attributes for filters |
| history.safetensors | optional user data: features, events, what the teacher would recommend |
| items.usearch | optional graph over the item vectors, for large catalogues |

Files from 32 MiB on are mapped into memory, not read: never write over a file of a bundle that is
in use (`write_bundle` puts each new file in place by a rename, which is safe).
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from safetensors.numpy import save

from distilrec.bundle.checks import Arrays, check_manifest
from distilrec.bundle.contents import BundleCatalogue, BundleHistory, BundleWeights
from distilrec.bundle.manifest import (
    CATALOGUE,
    FORMAT_VERSION,
    GRAPH,
    HISTORY,
    NEWEST,
    WEIGHTS,
    FileEntry,
    Manifest,
    version_of,
)
from distilrec.errors import (
    BundleCorruptedError,
    BundleMissingError,
    BundleVersionError,
    StorageError,
)
from distilrec.files import hash_of, locked, remove, write_json, write_whole

MAPPED_FROM = 32 * 2**20  # bytes
_Contents = TypeVar("_Contents")


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory, checked: hashes, and the shapes of all arrays but those that only this
    kind of student has, which `make_runtime` checks.

    history: None where the bundle has none; graph: the file of the graph over the items, where
    there is one.
    """

    folder: Path
    manifest: Manifest
    weights: BundleWeights
    catalogue: BundleCatalogue
    history: BundleHistory | None
    graph: Path | None = None


def write_bundle(
    folder: Path,
    manifest: Manifest,
    weights: BundleWeights,
    catalogue: BundleCatalogue,
    history: BundleHistory | None,
    before: Callable[[Manifest], None] = lambda manifest: None,
    graph: Path | None = None,
) -> Manifest:
    """Write all files, then the manifest; return the manifest with hashes and model version
    filled in.

    While the files are replaced there is no manifest, and so no bundle.
    before: is called with the whole manifest before it is written. graph: the file that becomes the
    graph, where `manifest.search` says that there is one; None takes the one that is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        remove([folder / "manifest.json"])
        files = {}
        contents = {
            WEIGHTS: weights.pack(),
            CATALOGUE: catalogue.pack(),
            **({} if history is None else {HISTORY: history.pack()}),
        }
        for name, arrays in contents.items():
            data = encoded(arrays)
            write_whole(folder / name, data)
            files[name] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        if manifest.search.kind == "graph":
            if graph is not None:
                graph.replace(folder / GRAPH)
            files[GRAPH] = FileEntry(hash_of(folder / GRAPH), (folder / GRAPH).stat().st_size)
        graphs = [folder / f"{GRAPH}{suffix}" for suffix in ("", ".next", ".next.new")]
        remove(
            [*_histories(folder), *filter(Path.exists, graphs)], [folder / name for name in files]
        )
        return write_manifest(folder, msgspec.structs.replace(manifest, files=files), before)


def write_manifest(
    folder: Path, manifest: Manifest, before: Callable[[Manifest], None] = lambda manifest: None
) -> Manifest:
    """Write the manifest of files that are there, with the model version that belongs to its
    content.

    before: is called with the whole manifest before it is written.
    """
    whole = msgspec.structs.replace(manifest, model_version=manifest.hashed())
    before(whole)
    write_json(folder / "manifest.json", whole)
    return whole


def _histories(folder: Path) -> list[Path]:
    """Return the files of a bundle that may hold the history of an earlier state, or of one that
    was never finished.
    """
    patterns = ("history*.safetensors", "history*.safetensors.new", "manifest.json.new")
    return [path for pattern in patterns for path in folder.glob(pattern)]


def read_bundle(folder: Path | str) -> Bundle:
    """Return a checked bundle. Raises BundleMissingError, BundleVersionError and
    BundleCorruptedError, each naming the file.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise BundleMissingError(
            f"there is no bundle in {folder} (no manifest.json)",
            fix="check the path; `distilrec export`, `distilrec run` and `make demo` make bundles",
            file=str(path),
        )
    manifest = read_manifest(path)
    weights = _read_contents(folder, manifest, WEIGHTS, BundleWeights.unpack)
    catalogue = _read_contents(folder, manifest, CATALOGUE, BundleCatalogue.unpack)
    history = graph = None
    if HISTORY in manifest.files:
        history = _read_contents(folder, manifest, HISTORY, BundleHistory.unpack)
    if GRAPH in manifest.files:
        graph = folder / GRAPH
        _check_file(graph, manifest.files[GRAPH])
    return Bundle(folder, manifest, weights, catalogue, history, graph)


def _read_contents(
    folder: Path, manifest: Manifest, name: str, unpack: Callable[[Arrays, Manifest], _Contents]
) -> _Contents:
    """Return what a file of a bundle holds, checked."""
    entry = manifest.files.get(name)
    if entry is None:
        raise corrupted(folder / "manifest.json", f"does not list {name}")
    arrays = _read_arrays(folder / (entry.name or name), entry)
    try:
        return unpack(arrays, manifest)
    except ValueError as problem:
        raise corrupted(folder / name, str(problem)) from None


def encoded(arrays: Arrays) -> bytes:
    """Return arrays as a safetensors file."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def erase_user(folder: Path | str, user_id: str) -> bool:
    """Take one user out of a bundle's history; return whether there was anything to take.

    Safe to interrupt, and to call again: the new history gets a file of its own, then the manifest
    is replaced in one step, then every history that it does not name goes. The model version stays
    as it is. Raises what `read_bundle` raises, and StorageError.
    """
    folder = Path(folder)
    with _exclusive(folder):
        bundle = read_bundle(folder)
        files = dict(bundle.manifest.files)
        history = bundle.history
        there = history is not None and user_id in history.users
        if history is not None and there:
            data = encoded(history.without(history.users.index(user_id)).pack())
            digest = hashlib.sha256(data).hexdigest()
            files[HISTORY] = FileEntry(digest, len(data), f"history-{digest[:16]}.safetensors")
            write_whole(folder / files[HISTORY].name, data)
            manifest = folder / "manifest.json"
            # What a newer version wrote, and this one does not know, stays
            content = msgspec.json.decode(manifest.read_bytes())
            write_json(manifest, content | {"files": files})
        left_over = remove(
            _histories(folder), [folder / (entry.name or name) for name, entry in files.items()]
        )
    return there or left_over > 0


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time change a bundle."""
    if not folder.is_dir():
        raise BundleMissingError(
            f"there is no bundle in {folder}", fix="check the path", file=str(folder)
        )
    try:
        with locked(folder):
            yield
    except OSError as problem:
        raise StorageError(
            f"the bundle {folder} cannot be changed: {problem}",
            fix="make its folder writable for the service, or erase the user from its source and "
            "export it again",
            file=str(folder),
        ) from None


def read_manifest(path: Path) -> Manifest:
    """Return the checked manifest of a bundle, without its files. Raises BundleVersionError
    and BundleCorruptedError.
    """
    data = path.read_bytes()
    try:
        version = msgspec.json.decode(data, type=dict[str, Any]).get("format_version")
        if isinstance(version, int) and not FORMAT_VERSION <= version <= NEWEST:
            upgrade = "upgrade distilrec (pip install -U distilrec)"
            raise BundleVersionError(
                f"{path} has format {version}; this distilrec reads {FORMAT_VERSION} to {NEWEST}",
                fix=f"{upgrade}, or export again"
                if version > FORMAT_VERSION
                else "train and export the student again",
                file=str(path),
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise corrupted(path, f"is not a manifest: {problem}") from None
    if version_of(data) != manifest.model_version:
        raise corrupted(path, "has been edited: its content does not match its model version")
    try:
        check_manifest(manifest)
    except (ValueError, OverflowError) as problem:
        raise corrupted(path, str(problem)) from None
    return manifest


def _check_file(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise corrupted(path, "is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise corrupted(
            path, f"has {size} bytes instead of {entry.bytes}: it is truncated or has been replaced"
        )
    if hash_of(path) != entry.sha256:
        raise corrupted(path, "has been edited: its hash is not the one in the manifest")


_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
}


def _read_arrays(path: Path, entry: FileEntry) -> Arrays:
    """Return the arrays of a safetensors file, views into it. The library itself copies each,
    so this reads the header itself: 8 bytes with its length, JSON, then the data
    (https://github.com/huggingface/safetensors, "Format").
    """
    _check_file(path, entry)
    with path.open("rb") as file:
        # A private map: what is written to it stays in this process. Both kinds can be written, so
        # that the kernels are compiled for one kind of array only.
        data: Any = (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if entry.bytes >= MAPPED_FROM
            else bytearray(file.read())
        )
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = msgspec.json.decode(data[8:start], type=dict[str, dict[str, Any]])
        header.pop("__metadata__", None)
        arrays = {}
        for name, tensor in header.items():
            first, stop = tensor["data_offsets"]
            flat = np.frombuffer(data, np.uint8, stop - first, start + first).view(
                _DTYPES[tensor["dtype"]]
            )
            arrays[name] = flat.reshape(tensor["shape"])
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, OverflowError) as problem:
        raise corrupted(path, f"cannot be read: {problem}") from None
    return arrays


def corrupted(path: Path, what: str) -> BundleCorruptedError:
    """Return the error of a file of a bundle that cannot be used."""
    return BundleCorruptedError(
        f"{path} {what}", fix="copy or export the bundle again", file=str(path)
    )
