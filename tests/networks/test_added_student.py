"""A kind of student is one torch class, one class of the engine and a row in each table; everything else takes it from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distilrec import load
from distilrec.engine.runtimes.kinds import RUNTIMES
from distilrec.errors import BundleVersionError
from distilrec.networks.kinds import STUDENTS
from distilrec.testing import StudentContract
from tests import small_run
from tests.networks import added_student
from tests.servers import Server

PROGRAM = Path(added_student.__file__)
TOML = """
[data]
interactions = "log.csv"
users = "users.csv"
items = "items.csv"
name = "shop"
[data.schema]
timestamp = "timestamp"
event_type = "event_type"
user_key = "user_id"
item_key = "item_id"
user_features = [{ name = "country", kind = "categorical" }]
item_features = [{ name = "genres", kind = "multi" }]
[teacher]
kind = "dnn"
dim = 8
hidden = 16
[teacher_training]
epochs = 2
[student]
kind = "mean"
[student_training]
epochs = 2
[labels]
top_k = 10
samples = 10
"""


@pytest.fixture(autouse=True, scope="module")
def added():
    """The kind is there for the tests of this file only."""
    added_student.add()
    yield
    del STUDENTS["mean"], RUNTIMES["mean"]


@pytest.mark.slow
class TestMean(StudentContract):
    config = added_student.MeanConfig()


def distilrec(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, PROGRAM, "-m", "distilrec.cli", *arguments],
        capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder after `distilrec run` with the added kind."""
    folder = tmp_path_factory.mktemp("shop")
    small_run.write_tables(folder)
    (folder / "shop.toml").write_text(TOML)
    distilrec("run", "--config", "shop.toml", "--run", "run", cwd=folder)
    return folder


@pytest.mark.slow
def test_a_run_exports_and_reports_it(shop):
    manifest = json.loads((shop / "run" / "bundle" / "manifest.json").read_text())
    assert manifest["kind"] == "mean"
    assert manifest["golden"] and manifest["metrics"]["ndcg@10"] > 0
    assert "student" in (shop / "run" / "report.html").read_text()


@pytest.mark.slow
def test_it_is_tuned(shop):
    assert 'kind = "mean"' in distilrec("tune", "--run", "run", "--trials", "2", cwd=shop)


@pytest.mark.server
@pytest.mark.slow
def test_the_service_serves_it(shop, tmp_path):
    server = Server(
        shop / "run" / "bundle", f"sqlite:///{tmp_path / 'store.db'}",
        python=(sys.executable, PROGRAM), log_folder=tmp_path,
    )  # fmt: skip
    try:
        expected = load(shop / "run" / "bundle")
        first = server.items("u1", k=5)
        assert first == [answer.item_id for answer in expected.recommend("u1", k=5)]
        server.event("u1", first[0])
        expected.update([{"user_id": "u1", "item_id": first[0]}])
        then = server.items("u1", k=5)
        assert then == [answer.item_id for answer in expected.recommend("u1", k=5)]
        assert first[0] not in then
    finally:
        server.stop()


@pytest.mark.slow
def test_a_distilrec_without_it_says_so(shop, monkeypatch):
    monkeypatch.delitem(RUNTIMES, "mean")
    with pytest.raises(BundleVersionError, match="a student of kind 'mean'"):
        load(shop / "run" / "bundle")
