"""The ONNX graphs of a student, run by ONNX Runtime: the generated cases of the web engine, every kind of input, bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from contextlib import suppress
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from distilrec import load
from distilrec.bundle.drec import read_drec
from distilrec.bundle.format import read_bundle
from distilrec.cli import main
from distilrec.engine import onnx_files
from distilrec.engine.filters import Filter
from distilrec.engine.onnx_files import FOLD, SCORES, STUDENT, OnnxStudent, write_onnx
from distilrec.errors import (
    BundleCorruptedError,
    ConfigError,
    DistilrecError,
    MissingExtraError,
    StorageError,
)
from distilrec.export.export import export_bundle
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests import small_run
from tests.engine.test_web import cases, same_order

pytestmark = pytest.mark.slow


class Client:
    """What a program in another language does with the files."""

    def __init__(self, folder):
        self.student = msgspec.json.decode((folder / STUDENT).read_bytes(), type=OnnxStudent)
        self.places = {item: n for n, item in enumerate(self.student.items)}
        self.fold, self.scorer = (InferenceSession(folder / name) for name in (FOLD, SCORES))
        self.states, self.seen = {}, {}

    def update(self, user, events):
        for event in events:
            if (item := self.places.get(event["item_id"])) is None:
                continue
            types = self.student.event_types
            kind = event["event_type"]
            if kind == "impression":
                continue
            number = types.index(kind) if kind in types else 0
            state = self.states.get(user, np.zeros((1, self.student.state), np.float32))
            asked = {"state": state, "item": np.array([item]), "event_type": np.array([number])}
            (self.states[user],) = self.fold.run(None, asked)
            self.seen.setdefault(user, set()).add(item)

    def scores(self, user, bag=()):
        bag = [*bag, (0, 0.0)]
        state = self.states.get(user, np.zeros((1, self.student.state), np.float32))
        columns, weights = zip(*bag, strict=True)
        asked = {
            "state": state,
            "user_columns": np.array([columns]),
            "user_weights": np.array([weights], np.float32),
        }
        return self.scorer.run(None, asked)[0][0]


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    """The graphs of the very student that the other engines are compared with."""
    folder = tmp_path_factory.mktemp("onnx")
    assert write_onnx(read_drec(student), folder).largest < 1e-4
    return folder


def test_the_generated_cases(student, exported):
    """All cases but their new items, through the engine in numpy and through the graphs."""
    recommender, client = load(student, runtime="numpy"), Client(exported)
    bags, moved = {}, 0
    for case in cases():
        user = str(case["user"]).strip()
        # What the engine refuses counts for nothing.
        with suppress(DistilrecError):
            recommender.update(case["events"])
            client.update(user, case["events"])
        if case["features"]:
            with suppress(DistilrecError):
                recommender.set_user(case["user"], case["features"])
                bags[user] = client.student.user_encoder.encode(case["features"])
        where = case["where"] and msgspec.convert(case["where"], Filter)
        try:
            mask = recommender._filters.mask(where)
        except DistilrecError:
            where, mask = None, recommender._filters.mask(None)
        expected = recommender.recommend(
            case["user"], k=case["k"], exclude_seen=case["exclude_seen"], where=where
        )
        scores = client.scores(user, bags.get(user, ())).astype(np.float64)
        if len(mask):
            scores[mask == 0] = -np.inf
        if case["exclude_seen"] is not False:  # a log without repeats
            scores[list(client.seen.get(user, ()))] = -np.inf
        order = [n for n in np.argsort(-scores, kind="stable")[: case["k"]] if scores[n] > -np.inf]
        ours = [[client.student.items[n], float(scores[n])] for n in order]
        theirs = [list(one) for one in expected]
        assert same_order(ours, theirs), (case, ours, theirs)
        moved += [one[0] for one in ours] != [one[0] for one in theirs]
    assert moved <= 10


@pytest.mark.parametrize(
    "more",
    [{}, {"neighbours": 5}, {"time": True, "timezone": "Asia/Kolkata"},
     {"neighbours": 3, "time": True, "timezone": "America/New_York"}, {"context": True},
     {"neighbours": 3, "repeat_events": 9, "visit_gap": 7200.0},
     {"repeat_events": 9, "visit_gap": 7200.0, "time": True}],
)  # fmt: skip
def test_every_input_of_a_student(small, tmp_path, more):
    """The export compares with the golden answers, which torch has given."""
    told = {name: value for name, value in more.items() if name != "context"}
    config = RecurrentConfig(dim=8, max_history=12, **told)
    if "context" in more:
        small = small_run.in_context(small)
    if "time" in more or "visit_gap" in more:
        trained = small_run.timed_student(config, small)
    else:
        trained = train_model(config, small, TrainingConfig(epochs=1, batch_size=16), seed=0)
    if "context" in more:
        with torch.no_grad():
            trained.model.context.table.normal_(generator=torch.Generator().manual_seed(0))
    export_bundle(trained, small, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    assert write_onnx(bundle, tmp_path / "onnx").largest < 1e-4
    names = {one.name for one in InferenceSession(tmp_path / "onnx" / SCORES).get_inputs()}
    assert ("gap" in names) == ("local_time" in names) == ("time" in more)
    assert ("visit" in names) == ("visit_gap" in more)
    assert ("context_columns" in names) == ("context" in more)
    wrong = msgspec.structs.replace(
        bundle.manifest.golden[2], top_scores=(9.0,) * len(bundle.manifest.golden[2].top_scores)
    )
    edited = msgspec.structs.replace(bundle.manifest, golden=(wrong,))
    with pytest.raises(BundleCorruptedError, match="onnxruntime does not reproduce"):
        write_onnx(replace(bundle, manifest=edited), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_negative_events_repel(student, tmp_path):
    """x has the sign of the event type, as the runtime has it."""
    from distilrec.engine.loops import loops_of
    from distilrec.engine.runtimes.kinds import make_runtime

    bundle = read_drec(student)
    roles = ("target", *["negative"] * (len(bundle.manifest.event_types) - 1))
    manifest = msgspec.structs.replace(bundle.manifest, roles=roles, golden=())
    bundle = replace(bundle, manifest=manifest)
    write_onnx(bundle, tmp_path)
    runtime, client = make_runtime(bundle, "exact", loops_of("numpy")), Client(tmp_path)
    state, items = runtime.new_state(), np.array([3, 4, 5], np.int32)
    last = len(manifest.event_types) - 1
    runtime.fold(state, items, np.array([0, 0, last], np.int32))
    expected = runtime.scores(runtime.query(state, np.zeros(manifest.dim, np.float32)))
    types = manifest.event_types
    client.update("a", [
        {"item_id": client.student.items[n], "event_type": types[kind]}
        for n, kind in zip(items, (0, 0, last), strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(client.scores("a"), expected, 1e-4, 1e-4)


def test_users_of_a_batch_do_not_meet(exported):
    client = Client(exported)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(5, client.student.state)).astype(np.float32)
    dim = client.student.state
    states[:, dim - 10 :] = 0  # a state keeps whole numbers there
    events = {"item": np.arange(5), "event_type": np.zeros(5, np.int64)}
    (together,) = client.fold.run(None, {"state": states, **events})
    for n in range(5):
        alone = {name: value[n : n + 1] for name, value in events.items()}
        (own,) = client.fold.run(None, {"state": states[n : n + 1], **alone})
        np.testing.assert_allclose(own[0], together[n], 1e-6)


@pytest.mark.parametrize("wrong", [{"item": -1}, {"item": 10**6}, {"event_type": -1}])
def test_places_outside_the_tables_are_errors(exported, wrong):
    client = Client(exported)
    asked = {"item": 0, "event_type": 0, **wrong}
    given = {name: np.array([value]) for name, value in asked.items()}
    with pytest.raises((InvalidArgument, Fail)):
        client.fold.run(None, {"state": np.zeros((1, client.student.state), np.float32), **given})


def test_the_files_say_what_they_are(student, exported):
    manifest, described = read_drec(student).manifest, json.loads((exported / STUDENT).read_text())
    assert described["model_version"] == manifest.model_version
    for name, entry in described["files"].items():
        data = (exported / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        model = onnx.load_from_string(data)
        said = {prop.key: prop.value for prop in model.metadata_props}
        assert said["format_version"] == "1"
        assert said["model_version"] == manifest.model_version
        assert model.opset_import[0].version == described["opset"] == 17


@pytest.mark.parametrize("kind", ["mlp", "soft_tree"])
def test_other_kinds_are_refused_by_name(small, tmp_path, kind):
    config = small_run.STUDENTS[kind]
    trained = train_model(config, small, TrainingConfig(epochs=1, batch_size=16), seed=0)
    export_bundle(trained, small, tmp_path / "bundle")
    with pytest.raises(ConfigError, match=f"'{kind}' cannot be exported to ONNX"):
        write_onnx(read_bundle(tmp_path / "bundle"), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_cannot_be_written_is_said(student, tmp_path, monkeypatch):
    (tmp_path / "onnx").write_text("a file")
    with pytest.raises(StorageError, match="onnx cannot be written"):
        write_onnx(read_drec(student), tmp_path / "onnx")
    monkeypatch.setattr(onnx_files, "_LARGEST", 1_000)
    with pytest.raises(ConfigError, match="holds at most 1,000"):
        write_onnx(read_drec(student), tmp_path / "other")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="onnx and onnxruntime"):
        write_onnx(read_drec(student), tmp_path / "other")


def test_the_command_line_writes_the_files(trained, tmp_path, capsys):
    bundle = shutil.copytree(trained, tmp_path / "bundle")
    main(["export", "--onnx", "--bundle", str(bundle)])
    assert "onnxruntime gives the golden answers" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {FOLD, SCORES, STUDENT}
    assert not (tmp_path / "student.drec").exists()
