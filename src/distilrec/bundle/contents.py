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


def check_manifest(manifest: Manifest) -> None:
    """Raises ValueError for sizes, encoders or golden questions that fit nothing."""
    m = manifest
    _true(m.dim >= 1 and m.items >= 1 and m.parameters >= 0, "has sizes below 1")
    _true(len(m.event_types) >= 1 and _distinct(m.event_types), "has no event types, or one twice")
    _true(
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
    _true(_distinct(names), "encodes a feature twice")
    for each in encoder.encodings:
        _true(each.width >= 0, f"gives feature {each.name!r} a negative width")
        if isinstance(each, NumericEncoding):
            levels = np.array(each.quantiles)
            _true(
                len(levels) >= 1 and bool(np.isfinite(levels).all()),
                f"has no quantiles of feature {each.name!r}",
            )
            _true(
                bool((np.diff(levels) >= 0).all()),
                f"has unsorted quantiles of feature {each.name!r}",
            )


def _check_golden(golden: Golden, m: Manifest) -> None:
    columns = [column for column, _ in golden.user_features]
    _true(
        len(golden.items) == len(golden.events)
        and len(golden.top_items) == len(golden.top_scores)
        and _inside(golden.items, m.items)
        and _inside(golden.top_items, m.items)
        and _inside(golden.events, len(m.event_types))
        and _inside(columns, m.user_encoder.width),
        "has golden questions about what the bundle does not have",
    )


def check_weights(m: Manifest, weights: Arrays) -> None:
    """Raises ValueError for arrays of other shapes than the student's, and for NaN and infinity."""
    shapes: dict[str, tuple[int, ...]] = {
        "vectors": (m.items, m.dim),
        "biases": (m.items,),
        "user_table": (m.user_encoder.width, m.dim),
        "item_table": (m.item_encoder.width, m.dim),
        **_own_shapes(m, weights),
    }
    for name, shape in shapes.items():
        found = _array(weights, name, np.float32, shape)
        _true(bool(np.isfinite(found).all()), f"array {name!r} holds NaN or infinity")


def _own_shapes(m: Manifest, weights: Arrays) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that only this kind of student has."""
    dim = m.dim
    if m.kind == "recurrent":
        scales, wide = _length(weights, "decay"), _length(weights, "widen")
        return {
            "gain": (len(m.event_types), dim),
            "decay": (scales, dim),
            "mix": (dim, scales * dim),
            "inner_norm": ((scales + 1) * dim,),
            "widen": (wide, (scales + 1) * dim),
            "widen_bias": (wide,),
            "narrow": (dim, wide),
            "narrow_bias": (dim,),
            "outer_norm": (dim,),
        }
    if m.kind == "soft_tree":
        nodes = _length(weights, "gate_bias")
        inputs = dim - nodes - 1  # an item vector holds its channel of every leaf, then its inputs
        _true(nodes & (nodes + 1) == 0 and inputs >= 0, f"has a tree of {nodes} gates")
        return {
            "gates": (nodes, 2 * inputs),
            "gate_bias": (nodes,),
            "log_totals": (nodes + 1,),
            "decays": (2,),
        }
    hidden = _length(weights, "readout")
    return {
        "user_layer": (hidden, dim),
        "user_layer_bias": (hidden,),
        "item_layer": (hidden, dim),
        "readout": (hidden,),
    }


def check_catalogue(m: Manifest, catalogue: Arrays) -> None:
    """Raises ValueError for ids, titles and attributes that are not those of the
    manifest's items.
    """
    _true(_distinct(_texts("ids", catalogue, m.items)), "holds an item twice")
    _texts("titles", catalogue, m.items)
    try:
        attributes = unpack_attributes(catalogue, m.items)
    except (KeyError, ValueError, TypeError, IndexError) as problem:
        raise ValueError(f"holds attributes that do not fit: {problem}") from None
    for name, categories in attributes.categories.items():
        for members in categories.values():
            _true(
                members.ndim == 1 and bool((np.diff(members) > 0).all()),
                f"attribute {name!r} has unsorted items",
            )


def check_history(m: Manifest, history: Arrays) -> None:
    """Raises ValueError for histories outside the catalogue, or that are cut at the
    wrong places.
    """
    users = _length(history, "users.offsets") - 1
    _true(_distinct(_texts("users", history, users)), "holds a user twice")
    items = _array(history, "items", np.int32, (_length(history, "items"),))
    events = _array(history, "events", np.int32, items.shape)
    _true(_inside(items, m.items), "holds items outside the catalogue")
    _true(_inside(events, len(m.event_types)), "holds events of unknown types")
    _check_offsets("offsets", _array(history, "offsets", np.int64, (users + 1,)), len(items))
    end = _array(history, "end", np.float64, (1,))
    _true(bool(np.isfinite(end).all()), "does not say when it ends")
    if "recent" in history:  # bundles of distilrec 0.1 do not say it
        recent = _array(history, "recent", np.int32, (users,))
        _true(
            bool(((recent >= 0) & (recent <= np.diff(history["offsets"]))).all()),
            "has more recent events than events",
        )
    columns = history.get("user_columns", np.zeros(0))
    _true(columns.ndim == 2, "has no features of the users")
    columns = _array(history, "user_columns", np.int32, (users, columns.shape[1]))
    weights = _array(history, "user_weights", np.float32, columns.shape)
    _true(_inside(columns, m.user_encoder.width), "holds features that are not encoded")
    _true(bool(np.isfinite(weights).all()), "holds features that are NaN or infinite")
    if "teacher_items" in history:
        lists = history["teacher_items"]
        _true(
            lists.ndim == 2 and lists.dtype == np.int32 and len(lists) == users,
            "has other lists of the teacher",
        )
        _true(_inside(lists + 1, m.items + 1), "holds recommendations outside the catalogue")


def _texts(name: str, arrays: Arrays, count: int) -> list[str]:
    offsets = _array(arrays, f"{name}.offsets", np.int64, (count + 1,))
    text = _array(arrays, f"{name}.text", np.uint8, (_length(arrays, f"{name}.text"),))
    _check_offsets(f"{name}.offsets", offsets, len(text))
    return unpack_texts(name, arrays)  # UnicodeDecodeError is a ValueError


def _check_offsets(name: str, offsets: NDArray[np.int64], length: int) -> None:
    _true(
        len(offsets) >= 1
        and offsets[0] == 0
        and offsets[-1] == length
        and bool((np.diff(offsets) >= 0).all()),
        f"array {name!r} cuts at the wrong places",
    )


def _array(arrays: Arrays, name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    _true(name in arrays, f"has no array {name!r}")
    found = arrays[name]
    _true(
        found.dtype == dtype and found.shape == shape,
        f"array {name!r} is {found.shape} {found.dtype}, expected {shape} {np.dtype(dtype)}",
    )
    return found


def _length(arrays: Arrays, name: str) -> int:
    found = arrays.get(name)
    return 0 if found is None or found.ndim == 0 else len(found)


def _inside(places: Sequence[int] | NDArray[Any], below: int) -> bool:
    found = np.asarray(places)
    return found.size == 0 or bool(0 <= found.min() <= found.max() < below)


def _distinct(texts: Iterable[str]) -> bool:
    listed = list(texts)
    return len(set(listed)) == len(listed)


def _true(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
