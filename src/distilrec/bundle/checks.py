"""What must hold inside a bundle before anything is computed with it: kernels do not check the
places that they read.

Hashes find damage; this finds files that make no sense although their hashes are right.
fuzz/fuzz.py looks for what it misses. All functions raise ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from distilrec.bundle.manifest import Golden, Manifest
from distilrec.features.encoding import CategoricalEncoding, FeatureEncoder, NumericEncoding
from distilrec.features.texts import unpack_texts

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


class Whole(NamedTuple):
    """What an array of whole numbers must be: its type, its shape, and numbers from `low` to below
    `below`.
    """

    dtype: type[np.integer[Any]]
    shape: tuple[int, ...]
    low: int
    below: int


def check_manifest(manifest: Manifest) -> None:
    """Check that sizes, encoders and golden questions fit each other."""
    m = manifest
    require(m.dim >= 1 and m.items >= 1 and m.parameters >= 0, "has sizes below 1")
    require(len(m.event_types) >= 1 and distinct(m.event_types), "has no event types, or one twice")
    if m.roles is not UNSET:
        require(len(m.roles) == len(m.event_types), "does not have a role for each event type")
    require(
        m.search.bias_unit > 0
        and math.isfinite(m.search.bias_unit)
        and m.search.expansion_search >= 0,
        "has impossible settings of the search",
    )
    if m.calibration is not UNSET:
        t = m.calibration.temperature
        require(t > 0 and math.isfinite(t), "has an impossible temperature")
    if m.visit_gap is not UNSET:
        require(m.visit_gap > 0 and math.isfinite(m.visit_gap), "has an impossible visit_gap")
    for encoder in (m.user_encoder, m.item_encoder):
        _check_encoder(encoder)
    if m.context_encoder is not UNSET:
        _check_encoder(m.context_encoder)
        kinds = (CategoricalEncoding, NumericEncoding)
        require(
            all(isinstance(encoding, kinds) for encoding in m.context_encoder.encodings),
            "encodes a context feature that is neither categorical nor numeric",
        )
    for golden in m.golden:
        _check_golden(golden, m)


def _check_encoder(encoder: FeatureEncoder) -> None:
    names = [encoding.name for encoding in encoder.encodings]
    require(distinct(names), "encodes a feature twice")
    for encoding in encoder.encodings:
        require(encoding.width >= 0, f"gives feature {encoding.name!r} a negative width")
        if isinstance(encoding, NumericEncoding):
            levels = np.array(encoding.quantiles)
            require(
                len(levels) >= 1 and bool(np.isfinite(levels).all()),
                f"has no quantiles of feature {encoding.name!r}",
            )
            require(
                bool((np.diff(levels) >= 0).all()),
                f"has unsorted quantiles of feature {encoding.name!r}",
            )


def _check_golden(golden: Golden, m: Manifest) -> None:
    columns = [column for column, _ in golden.user_features]
    require(
        len(golden.items) == len(golden.events)
        and len(golden.top_items) == len(golden.top_scores)
        and inside(golden.items, m.items)
        and inside(golden.top_items, m.items)
        and inside(golden.events, len(m.event_types))
        and inside(columns, m.user_encoder.width),
        "has golden questions about what the bundle does not have",
    )
    times, now = golden.times, golden.now
    if not m.timed:
        require(times is UNSET and now is UNSET, "has golden questions with times")
    else:
        require(
            times is not UNSET
            and now is not UNSET
            and len(times) == len(golden.items)
            and all(map(math.isfinite, (*times, now))),
            "has golden questions without times",
        )
    if m.context_encoder is UNSET:
        require(golden.context is UNSET, "has golden questions in a context")
    else:
        require(
            golden.context is not UNSET
            and inside([column for column, _ in golden.context], m.context_encoder.width)
            and all(math.isfinite(weight) for _, weight in golden.context),
            "has golden questions in no context of its encoder",
        )


def check_shapes(weights: Arrays, shapes: Shapes) -> None:
    """Check that these arrays are there, float32, of these shapes and finite."""
    for name, shape in shapes.items():
        array = checked_array(weights, name, np.float32, shape)
        require(bool(np.isfinite(array).all()), f"array {name!r} holds NaN or infinity")


def check_whole_numbers(weights: Arrays, wanted: Mapping[str, Whole]) -> None:
    """Check that these arrays are there, of these types and shapes, and within their bounds."""
    for name, (dtype, shape, low, below) in wanted.items():
        array = checked_array(weights, name, dtype, shape)
        fits = array.size == 0 or low <= array.min() <= array.max() < below
        require(bool(fits), f"array {name!r} holds numbers that it must not")


def checked_array(arrays: Arrays, name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array of this type and shape."""
    require(name in arrays, f"has no array {name!r}")
    array = arrays[name]
    require(
        array.dtype == dtype and array.shape == shape,
        f"array {name!r} is {array.shape} {array.dtype}, expected {shape} {np.dtype(dtype)}",
    )
    return array


def checked_texts(name: str, arrays: Arrays, count: int) -> list[str]:
    """Return this many texts."""
    offsets = checked_array(arrays, f"{name}.offsets", np.int64, (count + 1,))
    text = checked_array(arrays, f"{name}.text", np.uint8, (length_of(arrays, f"{name}.text"),))
    check_offsets(f"{name}.offsets", offsets, len(text))
    return unpack_texts(name, arrays)  # UnicodeDecodeError is a ValueError


def check_offsets(name: str, offsets: NDArray[np.int64], length: int) -> None:
    """Check that offsets cut an array of this length into parts."""
    require(
        len(offsets) >= 1
        and offsets[0] == 0
        and offsets[-1] == length
        and bool((np.diff(offsets) >= 0).all()),
        f"array {name!r} cuts at the wrong places",
    )


def length_of(arrays: Arrays, name: str) -> int:
    """Return the length of the first axis of an array, 0 where there is none."""
    array = arrays.get(name)
    return 0 if array is None or array.ndim == 0 else len(array)


def inside(places: Sequence[int] | NDArray[Any], below: int) -> bool:
    """Return whether all numbers are from 0 to below `below`."""
    positions = np.asarray(places)
    return positions.size == 0 or bool(0 <= positions.min() <= positions.max() < below)


def distinct(texts: Iterable[str]) -> bool:
    """Return whether no text is there twice."""
    listed = list(texts)
    return len(set(listed)) == len(listed)


def require(holds: bool, what: str) -> None:
    """Raise ValueError where something that must hold of a file does not."""
    if not holds:
        raise ValueError(what)
