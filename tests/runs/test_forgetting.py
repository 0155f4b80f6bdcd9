"""A user asks to be forgotten: what is erased, what is left, and the record of what models have seen."""

from __future__ import annotations

import shutil
import subprocess
import sys

import msgspec
import pytest

from distilrec import load, runs
from distilrec.data.dataset import load_dataset
from distilrec.errors import DataError
from distilrec.runs.seen import models_that_saw, record_users
from tests.small_run import small_config, write_tables

pytestmark = pytest.mark.slow


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "distilrec.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the small run with its own tables."""
    write_tables(tmp_path)
    shutil.copytree(finished_run.folder, tmp_path / "runs" / "one")
    config = small_config(tmp_path)
    (tmp_path / "runs" / "one" / "config.json").write_bytes(msgspec.json.encode(config))
    return runs.open_run(tmp_path / "runs" / "one")


def test_every_exported_model_has_a_record_of_its_users(run, tmp_path):
    data = load_dataset(run.folder / "data")
    warm, cold = data.info.user_ids[0], "nobody"
    versions = {load(folder).manifest.model_version for folder in (run.bundle, run.bundle_baseline)}
    found = models_that_saw(tmp_path / "runs", warm)
    # The student has two versions, as it was exported and with the metrics that `evaluate` measured.
    assert versions < {one.model_version for one in found}
    assert len(found) == 3
    assert [one.exported for one in found] == sorted(one.exported for one in found)
    assert models_that_saw(tmp_path / "runs", cold) == []
    for path in (run.folder / "seen").iterdir():
        content = path.read_bytes()
        header = content[
            8 : 8 + int.from_bytes(content[:8], "little")
        ]  # what follows are hashes, which look like anything
        assert (
            warm.encode() not in header
            and len(content) - 8 - len(header) == 8 * data.info.warm_users
        )
    said = command("seen", "--user-id", warm, "--runs", tmp_path / "runs")
    assert all(version in said.stdout for version in versions)
    assert (
        "no model recorded"
        in command("seen", "--user-id", cold, "--runs", tmp_path / "runs").stdout
    )


def test_a_user_is_forgotten_in_a_whole_run(run, tmp_path):
    before = load_dataset(run.folder / "data")
    user = before.info.user_ids[2]
    said = command("forget", "--user-id", user, "--run", run.folder).stdout
    rows = int(before.offsets[3] - before.offsets[2])
    assert f"prepared data: {rows} rows erased" in said
    assert "labels: deleted" in said
    assert said.count("history erased") == 2
    after = load_dataset(run.folder / "data")
    assert after.info.user_ids == before.info.user_ids[:2] + before.info.user_ids[3:]
    assert len(after.items) == len(before.items) - rows
    assert not (run.folder / "labels").exists()
    for folder in (run.bundle, run.bundle_baseline):
        assert not load(folder).knows_user(user)
    # The weights have seen the user, and the record says so.
    assert len(models_that_saw(tmp_path / "runs", user)) == 3
    again = command("forget", "--user-id", user, "--run", run.folder)
    assert again.returncode == 0 and "holds nothing" in again.stdout

    # The log still holds the user; this run leaves the user out from now on, and its new models have not seen the user.
    runs.run_all(run.config, run.folder)
    again = load_dataset(run.folder / "data")
    assert user not in again.info.user_ids
    assert again.info.cleaning_report.dropped["erased user"] == rows
    new = load(run.bundle)
    assert not new.knows_user(user)
    assert new.manifest.model_version not in {
        one.model_version for one in models_that_saw(tmp_path / "runs", user)
    }
    assert len(models_that_saw(tmp_path / "runs", before.info.user_ids[3])) == 6


def test_some_users_are_forgotten_one_after_the_other(run):
    users = load_dataset(run.folder / "data").info.user_ids
    for user in (users[0], users[-1], users[5]):
        assert runs.forget_user(run, user)
    assert set(load_dataset(run.folder / "data").info.user_ids) == set(users) - {
        users[0],
        users[-1],
        users[5],
    }
    assert (run.folder / "erased-users.txt").read_text().split() == [users[0], users[-1], users[5]]


def test_a_record_that_cannot_be_read_is_no_answer(tmp_path):
    about = {"dataset": "d", "dataset_fingerprint": "f", "teacher": "t", "private": False}
    record_users(tmp_path / "run", ["a", "b"], model_version="v1", **about)
    record_users(tmp_path / "run", ["c"], model_version="v1", **about)  # the first one counts
    assert [one.model_version for one in models_that_saw(tmp_path, "a")] == ["v1"]
    assert models_that_saw(tmp_path, "c") == []
    path = tmp_path / "run" / "seen" / "v1.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="not a readable record"):
        models_that_saw(tmp_path, "c")
