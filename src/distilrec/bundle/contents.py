"""What must hold inside a bundle before anything is computed with it: kernels do not check the
places that they read.

Hashes find damage; this finds files that make no sense although their hashes are right.
fuzz/fuzz.py looks for what it misses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilrec.bundle.manifest import Golden, Manifest
from distilrec.features.attributes import unpack_attributes
from distilrec.features.encoding import FeatureEncoder, NumericEncoding
from distilrec.features.texts import unpack_texts

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


def check_manifest(manifest: Manifest) -> None:
    """Raises ValueError for sizes, encoders or golden questions that fit nothing."""
    m = manifest
    require(m.dim >= 1 and m.items >= 1 and m.parameters >= 0, "has sizes below 1")
    require(
        len(m.event_types) >= 1 and _distinct(m.event_types), "has no event types, or one twice"
    )
    require(
        m.search.bias_unit > 0
        and math.isfinite(m.search.bias_unit)
        and m.search.expansion_search >= 0,
        "has impossible settings of the search",
    )
    for encoder in (m.user_encoder, m.item_encoder):
        _check_encoder(encoder)
    for golden in m.golden:
        _check_golden(golden, m)


def _check_encoder(encoder: FeatureEncoder) -> None:
    names = [each.name for each in encoder.encodings]
    require(_distinct(names), "encodes a feature twice")
    for each in encoder.encodings:
        require(each.width >= 0, f"gives feature {each.name!r} a negative width")
        if isinstance(each, NumericEncoding):
            levels = np.array(each.quantiles)
            require(
                len(levels) >= 1 and bool(np.isfinite(levels).all()),
                f"has no quantiles of feature {each.name!r}",
            )
            require(
                bool((np.diff(levels) >= 0).all()),
                f"has unsorted quantiles of feature {each.name!r}",
            )


def _check_golden(golden: Golden, m: Manifest) -> None:
    columns = [column for column, _ in golden.user_features]
    require(
        len(golden.items) == len(golden.events)
        and len(golden.top_items) == len(golden.top_scores)
        and _inside(golden.items, m.items)
        and _inside(golden.top_items, m.items)
        and _inside(golden.events, len(m.event_types))
        and _inside(columns, m.user_encoder.width),
        "has golden questions about what the bundle does not have",
    )


def check_weights(m: Manifest, weights: Arrays) -> None:
    """Check the arrays that every kind of student has; the engine checks those of the kind, where it
    makes a runtime of them.

    Raises ValueError for other shapes, and for NaN and infinity.
    """
    shapes = {
        "vectors": (m.items, m.dim),
        "biases": (m.items,),
        "user_table": (m.user_encoder.width, m.dim),
        "item_table": (m.item_encoder.width, m.dim),
    }
    check_shapes(weights, shapes)


def check_shapes(weights: Arrays, shapes: Shapes) -> None:
    """Check that these arrays are there, float32, of these shapes and finite; raises ValueError."""
    for name, shape in shapes.items():
        found = _array(weights, name, np.float32, shape)
        require(bool(np.isfinite(found).all()), f"array {name!r} holds NaN or infinity")


def check_catalogue(m: Manifest, catalogue: Arrays) -> None:
    """Raises ValueError for ids, titles and attributes that are not those of the
    manifest's items.
    """
    require(_distinct(_texts("ids", catalogue, m.items)), "holds an item twice")
    _texts("titles", catalogue, m.items)
    try:
        attributes = unpack_attributes(catalogue, m.items)
    except (KeyError, ValueError, TypeError, IndexError) as problem:
        raise ValueError(f"holds attributes that do not fit: {problem}") from None
    for name, categories in attributes.categories.items():
        for members in categories.values():
            require(
                members.ndim == 1 and bool((np.diff(members) > 0).all()),
                f"attribute {name!r} has unsorted items",
            )


def check_history(m: Manifest, history: Arrays) -> None:
    """Raises ValueError for histories outside the catalogue, or that are cut at the
    wrong places.
    """
    users = length_of(history, "users.offsets") - 1
    require(_distinct(_texts("users", history, users)), "holds a user twice")
    items = _array(history, "items", np.int32, (length_of(history, "items"),))
    events = _array(history, "events", np.int32, items.shape)
    require(_inside(items, m.items), "holds items outside the catalogue")
    require(_inside(events, len(m.event_types)), "holds events of unknown types")
    _check_offsets("offsets", _array(history, "offsets", np.int64, (users + 1,)), len(items))
    end = _array(history, "end", np.float64, (1,))
    require(bool(np.isfinite(end).all()), "does not say when it ends")
    if "recent" in history:  # bundles of distilrec 0.1 do not say it
        recent = _array(history, "recent", np.int32, (users,))
        require(
            bool(((recent >= 0) & (recent <= np.diff(history["offsets"]))).all()),
            "has more recent events than events",
        )
    columns = history.get("user_columns", np.zeros(0))
    require(columns.ndim == 2, "has no features of the users")
    columns = _array(history, "user_columns", np.int32, (users, columns.shape[1]))
    weights = _array(history, "user_weights", np.float32, columns.shape)
    require(_inside(columns, m.user_encoder.width), "holds features that are not encoded")
    require(bool(np.isfinite(weights).all()), "holds features that are NaN or infinite")
    if "teacher_items" in history:
        lists = history["teacher_items"]
        require(
            lists.ndim == 2 and lists.dtype == np.int32 and len(lists) == users,
            "has other lists of the teacher",
        )
        require(_inside(lists + 1, m.items + 1), "holds recommendations outside the catalogue")


def _texts(name: str, arrays: Arrays, count: int) -> list[str]:
    offsets = _array(arrays, f"{name}.offsets", np.int64, (count + 1,))
    text = _array(arrays, f"{name}.text", np.uint8, (length_of(arrays, f"{name}.text"),))
    _check_offsets(f"{name}.offsets", offsets, len(text))
    return unpack_texts(name, arrays)  # UnicodeDecodeError is a ValueError


def _check_offsets(name: str, offsets: NDArray[np.int64], length: int) -> None:
    require(
        len(offsets) >= 1
        and offsets[0] == 0
        and offsets[-1] == length
        and bool((np.diff(offsets) >= 0).all()),
        f"array {name!r} cuts at the wrong places",
    )


def _array(arrays: Arrays, name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    require(name in arrays, f"has no array {name!r}")
    found = arrays[name]
    require(
        found.dtype == dtype and found.shape == shape,
        f"array {name!r} is {found.shape} {found.dtype}, expected {shape} {np.dtype(dtype)}",
    )
    return found


def length_of(arrays: Arrays, name: str) -> int:
    """Return the length of the first axis of an array, 0 where there is none."""
    found = arrays.get(name)
    return 0 if found is None or found.ndim == 0 else len(found)


def _inside(places: Sequence[int] | NDArray[Any], below: int) -> bool:
    found = np.asarray(places)
    return found.size == 0 or bool(0 <= found.min() <= found.max() < below)


def _distinct(texts: Iterable[str]) -> bool:
    listed = list(texts)
    return len(set(listed)) == len(listed)


def require(holds: bool, what: str) -> None:
    """Raise ValueError where something that must hold of a file does not."""
    if not holds:
        raise ValueError(what)
