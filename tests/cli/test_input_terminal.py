"""What people type and see: terminals without UTF-8, and seeds that no generator takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec
import polars as pl
import pytest

from distilrec.cli import main
from distilrec.data.schema import Feature
from distilrec.engine.recommender import load
from distilrec.errors import ConfigError
from distilrec.runs.config import read_config
from distilrec.runs.stages import run_all
from distilrec.teachers.linear import LinearConfig
from tests import ROOT, small_run

pytestmark = pytest.mark.slow

NAME = "Été № {} — 日本 😀"
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}


@pytest.fixture(scope="module")
def accented(tmp_path_factory):
    """A small run whose items have titles, and one whose ids have letters, that ASCII has not."""
    folder = tmp_path_factory.mktemp("accented")
    small_run.write_tables(folder)
    for name in ("log", "items"):
        table = pl.read_csv(folder / f"{name}.csv").with_columns(
            pl.col("item_id").str.replace("i", "é")
        )
        if name == "items":
            table = table.rename({"price": "popularity"})
            table = table.with_columns(title=pl.format(NAME.replace("{}", "{}"), "item_id"))
        table.write_csv(folder / f"{name}.csv")
    config = msgspec.structs.replace(small_run.small_config(folder), teacher=LinearConfig())
    features = (Feature("popularity", "numeric"), Feature("genres", "multi"))
    schema = msgspec.structs.replace(config.data.schema, item_features=features)
    config = msgspec.structs.replace(
        config, data=msgspec.structs.replace(config.data, schema=schema)
    )
    run_all(config, folder / "run")
    return folder / "run"


def cli(*arguments, script=None, **environment):
    command = [
        sys.executable,
        *([script] if script else ["-m", "distilrec.cli"]),
        *map(str, arguments),
    ]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, **ASCII, **environment}, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert (done.stdout + done.stderr).isascii()
    return done


def test_titles_on_a_terminal_without_utf_8(accented):
    bundle = accented / "bundle"
    done = cli("recommend", "--bundle", bundle, "--user_id", "u1", "--explain")
    assert done.returncode == 0
    assert b"\\u2116" in done.stdout
    done = cli("recommend", "--bundle", bundle, "--user_id", "u1", "--json")
    assert NAME.split(" {}")[0] in json.loads(done.stdout)["items"][0]["title"]
    done = cli("--user_id", "u1", script=ROOT / "recommend.py", DISTILREC_BUNDLE=str(bundle))
    assert (done.returncode, b"\\u2116" in done.stdout) == (0, True)
    done = cli("recommend", "--bundle", bundle, "--user_id", "Zoë")
    assert (done.returncode, b"id_invalid" in done.stderr) == (
        2,
        True,
    )  # bytes that this terminal has no characters for


def test_a_new_item_is_not_popular_by_itself(accented):
    """A column of the user's called popularity is missing where it is not given; what the log says of a new item is 0."""
    recommender = load(accented / "bundle")
    for name, features in {
        "nothing": {}, "zero": {"popularity": 0.0}, "unseen": {"popularity_in_log": 0.0}, "liked": {"popularity_in_log": 9.0},
    }.items():  # fmt: skip
        recommender.add_item(name, features)
    scores = dict(recommender.recommend("u1", ["nothing", "zero", "unseen", "liked"]))
    assert scores["nothing"] == scores["unseen"]
    assert len({scores["nothing"], scores["zero"], scores["liked"]}) == 3


def test_messages_and_tables_on_a_terminal_without_utf_8(accented, tmp_path):
    assert (
        cli(
            "recommend", "--bundle", accented / "bundle", "--user_id", "u1", "--item_ids", "ö"
        ).returncode
        == 2
    )
    assert cli("recommend", "--bundle", tmp_path / "ö", "--user_id", "u1").returncode == 2
    assert cli("evaluate", "--run", accented).returncode == 0
    (tmp_path / "été.csv").write_text("user_id,item_id\né,é\n")
    (tmp_path / "run.toml").write_text('[data]\ninteractions = "été.csv"\n', encoding="utf-8")
    assert (
        cli("prepare", "--config", tmp_path / "run.toml", "--run", tmp_path / "run").returncode == 2
    )
    assert cli("--help").returncode == 0


def test_a_terminal_with_utf_8_shows_them(accented):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "distilrec.cli",
            "recommend",
            "--bundle",
            accented / "bundle",
            "--user_id",
            "u1",
            "--json",
        ],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    assert "№" in done.stdout.decode()


@pytest.mark.parametrize("seed", [-1, 2**32, -(2**70)])
def test_seeds_that_no_generator_takes_are_refused(seed, tmp_path, capsys):
    member = '[teacher]\nkind = "ensemble"\n[[teacher.members]]\nmodel = {{ kind = "linear" }}\nseed = {}\n'
    for top, rest in (
        (f"seed = {seed}\n", ""),
        (f"teacher_seed = {seed}\n", ""),
        ("", member.format(seed)),
    ):
        (tmp_path / "run.toml").write_text(f'{top}[data]\ninteractions = "log.csv"\n{rest}')
        with pytest.raises(ConfigError, match="seed"):
            read_config(tmp_path / "run.toml")
    small_run.write_tables(tmp_path)
    (tmp_path / "run.toml").write_text(
        '[data]\ninteractions = "log.csv"\n[data.schema]\ntimestamp = "timestamp"\n'
    )
    with pytest.raises(SystemExit):
        main(
            [
                "prepare",
                "--config",
                str(tmp_path / "run.toml"),
                "--run",
                str(tmp_path / "run"),
                "--seed",
                str(seed),
            ]
        )
    assert "error [config_invalid]: seed is" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
