"""The bundle and the engine: same answers as the training model, and nothing damaged is ever served."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.bundle.format import erase_user, read_bundle
from distilrec.bundle.manifest import CATALOGUE, FORMAT_VERSION, HISTORY, WEIGHTS, version_of
from distilrec.errors import (
    BundleCorruptedError,
    BundleMissingError,
    BundleVersionError,
    ConfigError,
    DistilrecError,
    UnknownItemError,
)
from distilrec.export.export import export_bundle
from distilrec.networks.dnn import DnnConfig
from distilrec.testing.students import rewrite
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests import small_run

LONGEST = 60


@pytest.fixture(scope="module", params=sorted(small_run.STUDENTS))
def student(request, small, tmp_path_factory):
    """A trained student of each kind, and its bundle."""
    config = msgspec.structs.replace(small_run.STUDENTS[request.param], max_history=LONGEST + 1)
    trained = train_model(config, small, TrainingConfig(epochs=3, batch_size=16), seed=0)
    folder = tmp_path_factory.mktemp(request.param)
    export_bundle(trained, small, folder)
    return trained, folder


def test_updates_equal_a_history_from_the_start(student, small):
    """A user who does the same things live ends with the same answers as one whose history was in the bundle."""
    _, folder = student
    recommender = load(folder)
    info = small.info
    for user in (0, 5, 11):
        rows = slice(small.offsets[user], small.offsets[user + 1])
        columns = small.user_features.columns[user], small.user_features.weights[user]
        live = f"live-{user}"
        result = recommender.update(
            {"user_id": live, "item_id": info.item_ids[item], "event_type": info.event_types[event]}
            for item, event in zip(small.items[rows], small.events[rows], strict=True)
        )
        assert result == (rows.stop - rows.start, 0)
        recommender.users.get(live).features = (
            read_bundle(folder).weights.user_table[columns[0]] * columns[1][:, None]
        ).sum(0)
        from_bundle, from_events = (
            recommender.recommend(info.user_ids[user]),
            recommender.recommend(live),
        )
        assert [a.item_id for a in from_bundle] == [a.item_id for a in from_events]
        np.testing.assert_allclose(
            [a.score for a in from_bundle], [a.score for a in from_events], rtol=1e-5, atol=1e-5
        )


def test_an_event_changes_the_next_answer(student):
    recommender = load(student[1])
    before = recommender.recommend("somebody new")
    recommender.update([{"user_id": "somebody new", "item_id": before[0].item_id}])
    after = recommender.recommend("somebody new")
    assert before[0].item_id not in [answer.item_id for answer in after]
    assert before[0].item_id in [
        a.item_id for a in recommender.recommend("somebody new", k=99, exclude_seen=False)
    ]
    assert before != after


def test_cold_users_and_items(student, small):
    _, folder = student
    recommender = load(folder)
    stranger = recommender.recommend("nobody")
    assert not recommender.knows_user("nobody")
    assert stranger == recommender.recommend("nobody else")
    recommender.set_user("newcomer", {"age": 30, "country": "fr"})
    assert recommender.recommend("newcomer") != stranger
    assert recommender.update([{"user_id": "newcomer", "item_id": "no such item"}]) == (0, 1)
    with pytest.raises(UnknownItemError, match="'brand-new' is not in the catalogue"):
        recommender.recommend("nobody", ["brand-new"])
    # An item of the item table without interactions, and one added live with the same features, get the same score.
    cold = small.info.item_ids[-1]
    row = {"genres": ["g0", "g2"], "price": 3.0, "title": "Thing"}
    recommender.add_item("one", row, "One")
    recommender.add_item("two", row)
    (one, two) = recommender.recommend("newcomer", ["one", "two"])
    assert one.score == two.score
    assert recommender.title("one") == "One"
    assert {a.item_id for a in recommender.recommend("newcomer", k=999)} >= {"one", "two", cold}
    with pytest.raises(ConfigError, match="already in the catalogue"):
        recommender.add_item("one", row)
    with pytest.raises(ConfigError, match="no item feature 'colour'; it has: genres"):
        recommender.add_item("three", {"colour": "red"})
    recommender.update([{"user_id": "newcomer", "item_id": "one"}])
    assert "one" not in {a.item_id for a in recommender.recommend("newcomer", k=999)}


def test_a_cold_item_of_the_table_scores_as_if_added_live(student, small):
    from tests.small_run import tables

    recommender = load(student[1])
    cold = small.info.item_ids[-1]
    row = next(item for item in tables()["items"].to_dicts() if item["item_id"] == cold)
    recommender.add_item(
        "same", {"genres": row["genres"], "price": row["price"], "title": row["title"]}
    )
    one, two = recommender.recommend("u1", [cold, "same"])
    assert one.score == pytest.approx(two.score, abs=1e-6)


def test_ranking_given_items(student):
    recommender = load(student[1])
    items = recommender.item_ids[:12]
    ranked = recommender.recommend("u1", [*items, items[0]], k=1)
    assert sorted(answer.item_id for answer in ranked) == sorted(items)
    assert [a.score for a in ranked] == sorted((a.score for a in ranked), reverse=True)
    assert recommender.recommend("u1", []) == []
    assert (
        recommender.recommend(7, [items[0]])[0].item_id == items[0]
    )  # any id type; a stranger is fine


@pytest.mark.parametrize("k", [0, -3])
def test_k_must_be_positive(student, k):
    with pytest.raises(ConfigError, match=f"k is {k}"):
        load(student[1]).recommend("u1", k=k)


def test_events_must_be_whole(student):
    recommender = load(student[1])
    with pytest.raises(ConfigError, match="an event is not valid"):
        recommender.update(
            [{"user_id": "new", "item_id": recommender.item_ids[0]}, {"user_id": "new"}]
        )
    assert not recommender.knows_user("new")  # all or nothing


SERVE = """
import sys
import distilrec
from distilrec.engine import kernels

def compiled():
    return {name: len(function.signatures) for name, function in vars(kernels).items() if hasattr(function, "signatures")}

recommender = distilrec.load(sys.argv[1])
before = compiled()
recommender.recommend("u1")
recommender.recommend("u1", recommender.item_ids[:3])
recommender.explain("u1", recommender.item_ids[0])
recommender.recommend("nobody", exclude_seen=False)
recommender.update([{"user_id": "u1", "item_id": recommender.item_ids[0]}])
recommender.add_item("new", {"price": 2.0})
recommender.update([{"user_id": "u2", "item_id": "new"}])
recommender.recommend("u2", k=3)
assert compiled() == before, (before, compiled())
"""


@pytest.mark.slow
def test_nothing_is_compiled_after_loading(student):
    """Neither the first request, nor a live event, nor a new item meets an array type that loading has not compiled."""
    run = subprocess.run(
        [sys.executable, "-c", SERVE, student[1]], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_manifest_holds_no_user_data(student, small):
    trained, folder = student
    text = (folder / "manifest.json").read_text()
    assert not any(f'"{user}"' in text for user in small.info.user_ids)
    manifest = export_bundle(trained, small, folder / "private", with_history=False)
    assert HISTORY not in manifest.files
    recommender = load(folder / "private")
    assert not recommender.knows_user("u1")
    assert recommender.manifest.model_version == load(folder).manifest.model_version


def test_teachers_cannot_be_exported(small, tmp_path):
    teacher = train_model(
        DnnConfig(dim=8, hidden=8, layers=1), small, TrainingConfig(epochs=1), seed=0
    )
    with pytest.raises(ConfigError, match="is a teacher"):
        export_bundle(teacher, small, tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", WEIGHTS, CATALOGUE, HISTORY])
@pytest.mark.parametrize("damage", ["truncated", "edited", "missing", "empty"])
def test_damaged_bundles_are_refused(bundle, name, damage):
    path = bundle / name
    data = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "edited":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    with pytest.raises((BundleCorruptedError, BundleMissingError)) as caught:
        load(bundle)
    assert name in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("version", "fix"), [(99, "upgrade distilrec"), (1, "train and export the student again")]
)
def test_other_formats_are_refused(bundle, version, fix):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": version}
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        BundleVersionError, match=f"has format {version}; this distilrec reads {FORMAT_VERSION}"
    ) as caught:
        load(bundle)
    assert fix in caught.value.fix


def test_fields_that_are_not_known_are_ignored_and_kept(bundle):
    path = bundle / "manifest.json"
    newer = json.loads(path.read_text()) | {"hue": {"warm": 1, "cold": [0.5, None]}}
    newer["search"]["hue"] = "red"
    newer["model_version"] = version_of(json.dumps(newer).encode())
    path.write_text(json.dumps(newer))
    recommender = load(bundle)
    [user, *_] = recommender.some_users(1)
    assert recommender.model_version == newer["model_version"]
    assert erase_user(bundle, user)
    assert not load(bundle).past(user, 10)
    kept = json.loads(path.read_text())
    assert (kept["hue"], kept["search"]) == (newer["hue"], newer["search"])

    path.write_text(json.dumps(kept | {"hue": 2}))
    with pytest.raises(BundleCorruptedError, match="edited"):
        load(bundle)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["manifest.json", WEIGHTS, CATALOGUE, HISTORY]),
    place=st.floats(0, 1),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_noticed(finished_run, tmp_path_factory, name, place, bit):
    folder = tmp_path_factory.mktemp("flip") / "bundle"
    shutil.copytree(finished_run.bundle, folder)
    data = bytearray((folder / name).read_bytes())
    where = min(int(place * len(data)), len(data) - 1)
    data[where] ^= 1 << bit
    (folder / name).write_bytes(data)
    original = read_bundle(finished_run.bundle)
    try:
        read = read_bundle(folder)
    except DistilrecError:
        return
    # White space between the fields of the manifest carries no meaning: then nothing else may have changed.
    assert name == "manifest.json"
    assert read.manifest == original.manifest


def test_no_bundle(tmp_path):
    with pytest.raises(BundleMissingError, match="make demo"):
        load(tmp_path)


def test_wrong_golden_answers_are_refused(bundle):
    """A bundle whose hashes are right but whose answers are not those of the training model."""
    from distilrec.bundle.format import write_bundle

    read = read_bundle(bundle)
    wrong = msgspec.structs.replace(
        read.manifest.golden[2],
        top_scores=tuple(score + 0.01 for score in read.manifest.golden[2].top_scores),
    )
    golden = (*read.manifest.golden[:2], wrong, *read.manifest.golden[3:])
    manifest = msgspec.structs.replace(read.manifest, golden=golden)
    write_bundle(bundle, manifest, read.weights, read.catalogue, read.history)
    with pytest.raises(BundleCorruptedError, match="does not reproduce the golden answers"):
        load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("mix"), "has no array 'mix'"),
        (lambda w: w.update(biases=w["biases"][:-1]), "array 'biases' is"),
        (lambda w: w["vectors"].__setitem__((0, 0), np.nan), "'vectors' holds NaN or infinity"),
        (lambda w: w.update(gain=w["gain"].astype(np.float64)), "float64, expected"),
    ],
)
def test_inconsistent_arrays_are_refused(bundle, change, message):
    read = read_bundle(bundle)
    weights = {name: array.copy() for name, array in read.weights.pack().items()}
    change(weights)
    rewrite(read, weights, bundle)
    with pytest.raises(BundleCorruptedError, match=message):
        load(bundle)
