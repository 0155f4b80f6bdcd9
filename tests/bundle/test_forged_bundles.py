"""Bundles whose hashes are right and whose content is not: refused with the name of the file, never a crash.

What fuzz/fuzz.py found is kept here; the property at the end goes on looking.
"""

from __future__ import annotations

import contextlib
import json
import shutil

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from distilrec import load
from distilrec.bundle.format import erase_user
from distilrec.bundle.manifest import CATALOGUE, HISTORY, WEIGHTS, FileEntry, Manifest
from distilrec.errors import BundleCorruptedError, DistilrecError
from distilrec.files import hash_of


def seal(folder, manifest: dict) -> None:
    """Computes all hashes anew, as somebody would who can write the folder."""
    for name in (WEIGHTS, CATALOGUE, HISTORY):
        entry = msgspec.to_builtins(
            FileEntry(hash_of(folder / name), (folder / name).stat().st_size)
        )
        manifest["files"][name] = {**manifest["files"][name], **entry}
    with contextlib.suppress(msgspec.ValidationError):
        manifest["model_version"] = msgspec.convert(manifest, Manifest).hashed()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forge_arrays(folder, file, change) -> None:
    arrays = decode((folder / file).read_bytes())
    change(arrays)
    (folder / file).write_bytes(
        encode({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    )
    seal(folder, json.loads((folder / "manifest.json").read_text()))


def put(name, place, value):
    def change(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value

    return change


def swap(name, make):
    return lambda arrays: arrays.update({name: make(arrays[name])})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (HISTORY, lambda arrays: arrays.pop("events"), "has no array 'events'"),
        (HISTORY, lambda arrays: arrays.pop("end"), "has no array 'end'"),
        (HISTORY, lambda arrays: arrays.pop("user_columns"), "has no features of the users"),
        (HISTORY, put("events", 0, 3), "events of unknown types"),
        (HISTORY, put("events", 0, -1), "events of unknown types"),
        (HISTORY, put("items", 5, 42), "items outside the catalogue"),
        (HISTORY, put("offsets", 1, 10**9), "'offsets' cuts at the wrong places"),
        (HISTORY, put("offsets", 0, 1), "'offsets' cuts at the wrong places"),
        (HISTORY, put("users.offsets", 1, -5), "'users.offsets' cuts at the wrong places"),
        (HISTORY, put("users.text", slice(0, 9), 0xFF), "can't decode"),
        (HISTORY, put("users.text", slice(0, 4), list(b"u1u1")), "holds a user twice"),
        (HISTORY, put("end", 0, np.nan), "does not say when it ends"),
        (HISTORY, put("user_columns", (0, 0), 6), "features that are not encoded"),
        (HISTORY, put("user_weights", (0, 0), np.inf), "features that are NaN or infinite"),
        (HISTORY, put("teacher_items", (0, 0), 42), "recommendations outside the catalogue"),
        (HISTORY, put("teacher_items", (0, 0), -2), "recommendations outside the catalogue"),
        (HISTORY, swap("items", lambda a: a.astype(np.int64)), "'items' is .* int64, expected .* int32"),
        (CATALOGUE, lambda arrays: arrays.pop("ids.text"), "has no array 'ids.text'"),
        (CATALOGUE, put("ids.text", slice(0, 4), list(b"i1i1")), "holds an item twice"),
        (CATALOGUE, put("titles.offsets", 3, 10**9), "'titles.offsets' cuts at the wrong places"),
        (CATALOGUE, lambda arrays: arrays.pop("ends:genres"), "attributes that do not fit"),
        (CATALOGUE, put("ends:genres", 0, 50), "attributes that do not fit"),
        (CATALOGUE, swap("ends:genres", lambda a: a.astype(np.float64)), "attributes that do not fit"),
        (CATALOGUE, swap("ends:genres", lambda a: a[:1]), "attributes that do not fit"),
        (CATALOGUE, put("members:genres", 0, 41), "unsorted items"),
        (CATALOGUE, swap("number:price", lambda a: a[:3]), "attributes that do not fit"),
        (CATALOGUE, swap("number:price", lambda a: a.reshape(-1, 1)), "attributes that do not fit"),
        (WEIGHTS, swap("vectors", lambda a: a.astype(np.float64)), "array 'vectors' is .* float64"),
        (WEIGHTS, put("decay", (0, 0), 3.0), "does not reproduce the golden answers"),
        (WEIGHTS, put("gain", (0, 0), np.nan), "'gain' holds NaN"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_arrays_that_make_no_sense(bundle, file, change, message):
    forge_arrays(bundle, file, change)
    with pytest.raises(BundleCorruptedError, match=message) as caught:
        load(bundle)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("items",), 0, "sizes below 1"),
        (("event_types",), [], "no event types"),
        (("event_types",), ["view", "view", "x"], "or one twice"),
        (("roles",), ["inform", "target"], "a role for each event type"),
        (("roles",), ["inform", "target", "disliked"], "is not a manifest"),
        (("search",), {"bias_unit": 0.0}, "impossible settings of the search"),
        (("golden", 1, "items", 0), -1, "golden questions"),
        (("golden", 1, "items", 0), 10**12, "golden questions"),
        (("golden", 1, "events", 0), 7, "golden questions"),
        (("golden", 0, "top_scores"), [1.0], "golden questions"),
        (("golden", 0, "user_features", 0, 0), 99, "golden questions"),
        (("user_encoder", "encodings", 0, "quantiles"), [], "has no quantiles"),
        (("user_encoder", "encodings", 0, "quantiles"), [2.0, 1.0], "unsorted quantiles"),
        (("user_encoder", "encodings", 1, "name"), "age", "encodes a feature twice"),
        (("files", HISTORY, "name"), "../../other", "is not a manifest"),
    ],
)
def test_manifests_that_make_no_sense(bundle, path, value, message):
    manifest = json.loads((bundle / "manifest.json").read_text())
    place = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    seal(bundle, manifest)
    with pytest.raises(BundleCorruptedError, match=message):
        load(bundle)


def test_erasure_deletes_nothing_outside_the_bundle(bundle):
    """The name of the history's file is part of the manifest, and the old file is deleted."""
    other = bundle.parent / "other.safetensors"
    shutil.copy(bundle / HISTORY, other)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][HISTORY]["name"] = "../other.safetensors"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleCorruptedError):
        erase_user(bundle, "u1")
    assert other.is_file()


values = {
    "f": st.floats(width=32) | st.sampled_from([0.0, 1e30, -1e30]),
    "i": st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 60),
    "u": st.integers(0, 255),
}


@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # huge weights overflow before the golden answers refuse them
def test_no_forgery_crashes(finished_run, tmp_path_factory, data):
    folder = shutil.copytree(finished_run.bundle, tmp_path_factory.mktemp("forged") / "bundle")
    file = data.draw(st.sampled_from([WEIGHTS, CATALOGUE, HISTORY]))

    def change(arrays):
        name = data.draw(st.sampled_from(sorted(arrays)))
        array = arrays[name].copy()
        what = data.draw(st.sampled_from(["value", "cut", "double", "type", "shape"]))
        if what == "value" and array.size:
            array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = data.draw(
                values[array.dtype.kind]
            )
        elif what == "cut":
            array = array[: data.draw(st.integers(0, len(array)))]
        elif what == "double":
            array = np.concatenate([array, array])
        elif what == "type":
            array = array.astype(
                data.draw(st.sampled_from([np.float32, np.int64, np.int32, np.uint8]))
            )
        else:
            array = array.reshape(1, -1)
        arrays[name] = array

    forge_arrays(folder, file, change)
    try:
        recommender = load(folder)
    except DistilrecError as problem:
        assert problem.fix
        return
    for user in ("u1", "stranger"):
        best = recommender.recommend(user, k=5)  # an id may have been forged into another one
        assert len(best) == 5
        recommender.update([{"user_id": user, "item_id": best[0].item_id}])
        recommender.explain(user, best[1].item_id)
        recommender.teacher_items(user)
