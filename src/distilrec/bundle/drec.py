"""A student in one small file, `student.drec`, for web pages and devices: the item vectors in 8
bits, no data about users.

docs/web-file.md specifies it. 48 bytes begin the file, then come a header in JSON and the arrays:

| bytes | content |
|---|---|
| 0 to 8 | the mark |
| 8 to 12 | format number, unsigned |
| 12 to 16 | length of the header, unsigned |
| 16 to 48 | SHA-256 of the whole file, with these 32 bytes 0 |
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from distilrec.bundle.checks import Arrays, check_manifest, checked_array, require
from distilrec.bundle.contents import BundleCatalogue, BundleWeights
from distilrec.bundle.format import Bundle, corrupted
from distilrec.bundle.manifest import NEIGHBOURS, REPEATS, VISITS, Manifest, SearchInfo
from distilrec.errors import BundleMissingError, BundleVersionError
from distilrec.features.attributes import unpack_attributes
from distilrec.features.texts import pack_texts, unpack_texts

MARK = b"\x89DREC\r\n\x1a"
DREC_VERSION = 1
# Of a student that knows visits, from which a reader of format 1 would answer wrongly
WITH_VISITS = 2
_START, _HASH, _ALIGNED = 48, slice(16, 48), 16
_LARGEST = 127
# What an event leaves of a state is near 1, where halves are far apart.
_EXACT = {"decay", "neighbour_ages", REPEATS, VISITS, "earlier_repeats"}
_DTYPES: dict[str, type] = {
    "I8": np.int8,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
_NAMES: dict[np.dtype[Any], str] = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
MatrixPrecision = Literal["half", "float32"]


class Rounding(msgspec.Struct, frozen=True):
    """What the fewer bits change, measured over made-up users when the file was written.

    questions: the number of users; overlap: the share of the ten best items of the bundle that are
    among the ten best of the file; largest: the largest difference of a score.
    """

    questions: int
    overlap: float
    largest: float


class _Array(msgspec.Struct, frozen=True):
    """An array: its type, its shape, and where it begins, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class Header(msgspec.Struct, frozen=True):
    """What the file says of itself.

    manifest: that of the bundle, without files and search, with the answers of this file to the
    golden questions.
    """

    manifest: Manifest
    rounding: Rounding
    arrays: dict[str, _Array]


def compact(bundle: Bundle, precision: MatrixPrecision) -> dict[str, NDArray[Any]]:
    """Return the arrays of the file: vectors in 8 bits with a scale for each item, matrices in half
    precision where that is asked for and they fit into it, everything else without loss.
    """
    weights = bundle.weights
    vectors = weights.vectors
    scales = np.maximum(np.abs(vectors).max(axis=1, initial=0.0), 1e-30) / np.float32(_LARGEST)
    arrays: dict[str, NDArray[Any]] = {
        "vectors": np.rint(vectors / scales[:, None]).astype(np.int8),
        "scales": scales.astype(np.float32),
        "biases": weights.biases,
    }
    others = {**weights.of_kind, "user_table": weights.user_table, "item_table": weights.item_table}
    for name, array in others.items():
        if name == NEIGHBOURS:
            arrays[name] = _narrow(array)
        elif precision == "half" and array.ndim == 2 and name not in _EXACT:
            arrays[name] = _halved(array)
        else:
            arrays[name] = array
    return arrays | _compact_catalogue(bundle.catalogue)


def _halved(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != np.float32:
        return array
    fits = not array.size or float(np.abs(array).max()) <= float(np.finfo(np.float16).max)
    return array.astype(np.float16) if fits else array


def _compact_catalogue(catalogue: BundleCatalogue) -> dict[str, NDArray[Any]]:
    # A title that is the id is left out.
    titles = ["" if a == b else a for a, b in zip(catalogue.titles, catalogue.ids, strict=True)]
    arrays = _compact_texts("ids", catalogue.ids) | _compact_texts("titles", titles)
    attributes = unpack_attributes(catalogue.attributes, len(catalogue.ids))
    for name, column in attributes.numbers.items():
        with np.errstate(over="ignore"):
            narrow = column.astype(np.float32)
        same = np.array_equal(narrow.astype(np.float64), column, equal_nan=True)
        arrays[f"number:{name}"] = narrow if same else column
    for name, index in attributes.categories.items():
        arrays |= _compact_texts(f"category:{name}", list(index))
        arrays[f"members:{name}"] = _narrow(np.concatenate([np.zeros(0, int), *index.values()]))
        arrays[f"sizes:{name}"] = _narrow(np.array([len(some) for some in index.values()], int))
    for name, separator in attributes.separators.items():
        arrays[f"separator:{name}"] = np.frombuffer(separator.encode(), np.uint8)
    return arrays


def _compact_texts(name: str, texts: list[str]) -> dict[str, NDArray[Any]]:
    arrays = pack_texts(name, texts)
    return {
        f"{name}.text": arrays[f"{name}.text"],
        f"{name}.lengths": _narrow(np.diff(arrays[f"{name}.offsets"])),
    }


def _narrow(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return numbers of at least 0 in the fewest bytes that hold them."""
    largest = int(numbers.max(initial=0))
    dtype = np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32
    return numbers.astype(dtype)


def encode_drec(
    manifest: Manifest, arrays: Mapping[str, NDArray[Any]], rounding: Rounding
) -> bytes:
    """Return the bytes of a file."""
    places: dict[str, _Array] = {}
    data = bytearray()
    for name, array in arrays.items():
        places[name] = _Array(_NAMES[array.dtype], array.shape, len(data))
        data += np.ascontiguousarray(array).tobytes()
        data += bytes(-len(data) % _ALIGNED)
    header = msgspec.json.encode(Header(manifest, rounding, places))
    header += b" " * (-(_START + len(header)) % _ALIGNED)
    version = DREC_VERSION if manifest.visit_gap is UNSET else WITH_VISITS
    numbers = version.to_bytes(4, "little") + len(header).to_bytes(4, "little")
    whole = bytearray(MARK + numbers + bytes(32) + header + data)
    whole[_HASH] = hashlib.sha256(whole).digest()
    return bytes(whole)


def read_drec(path: Path | str) -> Bundle:
    """Return the student of a file as a bundle without history, its weights as the file holds them.

    Raises BundleMissingError, BundleVersionError and BundleCorruptedError.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleMissingError(f"there is no file {path}", fix="check the path", file=str(path))
    return decode_drec(path.read_bytes(), path)


def decode_drec(data: bytes, path: Path) -> Bundle:
    """Return the student in the bytes of a file. path: for messages.

    Raises BundleVersionError and BundleCorruptedError.
    """
    if data[:8] != MARK or len(data) < _START:
        raise corrupted(path, "is not a student in one file")
    version = int.from_bytes(data[8:12], "little")
    if version not in (DREC_VERSION, WITH_VISITS):
        raise BundleVersionError(
            f"{path} has format {version}; this distilrec reads {DREC_VERSION} and {WITH_VISITS}",
            fix="upgrade distilrec (pip install -U distilrec), or export the file again",
            file=str(path),
        )
    if hashlib.sha256(data[:16] + bytes(32) + data[48:]).digest() != data[_HASH]:
        raise corrupted(path, "is truncated or has been edited: its hash is another one")
    stop = _START + int.from_bytes(data[12:16], "little")
    try:
        header = msgspec.json.decode(data[_START:stop], type=Header)
        check_manifest(header.manifest)
        arrays = {name: _array(data, stop, place) for name, place in header.arrays.items()}
        weights = _weights(arrays, header.manifest)
        catalogue = _catalogue(arrays, header.manifest)
    except (msgspec.MsgspecError, ValueError, KeyError, OverflowError) as problem:
        raise corrupted(path, f"cannot be read: {problem}") from None
    return Bundle(path, header.manifest, weights, catalogue, None)


def _array(data: bytes, start: int, place: _Array) -> NDArray[Any]:
    count = math.prod(place.shape)
    require(place.offset >= 0 and all(n >= 0 for n in place.shape), "has an impossible array")
    dtype: np.dtype[Any] = np.dtype(_DTYPES[place.dtype])
    return np.frombuffer(data, dtype, count, start + place.offset).reshape(place.shape)


def _weights(arrays: Arrays, m: Manifest) -> BundleWeights:
    integers = checked_array(arrays, "vectors", np.int8, (m.items, m.dim))
    scales = checked_array(arrays, "scales", np.float32, (m.items,))
    own: dict[str, NDArray[Any]] = {
        name: array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)
        for name, array in arrays.items()
        if name not in {"vectors", "scales"} and ":" not in name and "." not in name
    }
    if NEIGHBOURS in own:
        own[NEIGHBOURS] = own[NEIGHBOURS].astype(np.int32)
    own["vectors"] = integers.astype(np.float32) * scales[:, None]
    return BundleWeights.unpack(own, m)


def _catalogue(arrays: Arrays, m: Manifest) -> BundleCatalogue:
    wide: dict[str, NDArray[Any]] = {"popularity": np.zeros(m.items, np.int64)}
    for name, array in arrays.items():
        kind, _, rest = name.partition(":")
        if name.endswith(".lengths"):
            texts = name.removesuffix(".lengths")
            ends = np.cumsum(array, dtype=np.int64)
            wide[f"{texts}.offsets"] = np.concatenate([np.zeros(1, np.int64), ends])
        elif kind == "sizes":
            wide[f"ends:{rest}"] = np.cumsum(array, dtype=np.int64)
        elif kind == "number":
            wide[name] = array.astype(np.float64)
        elif kind == "members":
            wide[name] = array.astype(np.int32)
        elif kind == "separator" or name.endswith(".text"):
            wide[name] = array
    ids, titles = unpack_texts("ids", wide), unpack_texts("titles", wide)
    named = [title or item for title, item in zip(titles, ids, strict=True)]
    return BundleCatalogue.unpack(wide | pack_texts("titles", named), m)


def plain_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest without what belongs to the files of a bundle."""
    return msgspec.structs.replace(manifest, files={}, search=SearchInfo())
