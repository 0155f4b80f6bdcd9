"""What a user types, through the real command line, in processes of their own."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import msgspec
import polars as pl
import pytest

import distilrec
from distilrec.runs.config import RunConfig, read_config
from tests import ROOT, small_run

pytestmark = pytest.mark.slow

TOML = """
seed = 1
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
title = "title"
user_features = [{ name = "age", kind = "numeric" }, { name = "country", kind = "categorical" }]
item_features = [{ name = "genres", kind = "multi" }]
[split]
kind = "global-time"
[teacher]
kind = "dnn"
dim = 8
hidden = 16
[teacher_training]
epochs = 2
[student]
kind = "mlp"
dim = 8
[student_training]
epochs = 2
[labels]
top_k = 10
samples = 10
"""


def run(*arguments, cwd=None, environment=None):
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=300,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
    )
    assert "Traceback" not in process.stderr, process.stderr
    return process


def cli(*arguments, **keywords):
    return run("-m", "distilrec.cli", *arguments, **keywords)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with a log and a configuration, after `distilrec run`."""
    folder = tmp_path_factory.mktemp("shop")
    small_run.write_tables(folder)
    (folder / "shop.toml").write_text(TOML)
    done = cli("run", "--config", "shop.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_whole_line(shop):
    folder, done = shop
    for name in (
        "teacher",
        "student",
        "student without distillation",
        "popularity",
        "ItemKNN",
        "EASE",
    ):
        assert name in done.stdout
    assert "95% interval" in done.stdout
    assert "rows read" in done.stderr
    assert "validation NDCG@10" in done.stderr
    stages = ["prepare", "teacher", "baseline", "labels", "student", "export", "evaluate"]
    assert re.findall(r"(\w+): [\d.]+ s, peak memory [\d,]+ MiB", done.stderr) == stages
    # A handful of users cannot show that a teacher of a few epochs is above popularity
    assert "There is little to distil: on validation, NDCG@10 is" in done.stderr
    assert "What would help:" in done.stderr
    assert done.stderr.index("baseline: mlp") < done.stderr.index("There is little")
    assert done.stderr.index("There is little") < done.stderr.index("student: mlp")
    assert "There is little to distil" in done.stdout
    assert {path.name for path in (folder / "runs" / "shop").iterdir()} == {
        "config.json",
        "costs.json",
        "headroom.json",
        "data",
        "teacher",
        "labels",
        "student",
        "baseline",
        "bundle",
        "bundle-baseline",
        "checkpoints",
        "comparison.json",
        "report.html",
        "seen",
    }
    page = (folder / "runs" / "shop" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "There is little to distil" in page
    assert not re.search(r'(src|href)="?https?:', page)
    comparison = json.loads((folder / "runs" / "shop" / "comparison.json").read_text())
    assert comparison["split"] == "global-time"
    recorded = json.loads((folder / "runs" / "shop" / "bundle" / "manifest.json").read_text())[
        "metrics"
    ]
    student = next(row for row in comparison["rows"] if row["name"] == "student")
    assert recorded["ndcg@10"] == student["quality"]["ndcg@10"]["mean"]


def test_running_again_trains_nothing(shop):
    folder, _ = shop
    again = cli("run", "--config", "shop.toml", cwd=folder)
    assert again.returncode == 0
    assert again.stderr.count("already trained") == 3


def test_stage_by_stage_gives_the_same(shop, tmp_path):
    folder, _ = shop
    for name in ("log.csv", "users.csv", "items.csv", "shop.toml"):
        shutil.copy(folder / name, tmp_path)
    for command in (
        ["prepare", "--config", "shop.toml", "--run", "r"],
        ["train", "--run", "r"],
        ["distill", "--run", "r"],
        ["export", "--run", "r"],
        ["evaluate", "--run", "r"],
    ):
        done = cli(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((base / "bundle" / "manifest.json").read_text())["files"]["weights.safetensors"][
            "sha256"
        ]
        for base in (folder / "runs" / "shop", tmp_path / "r")
    )
    assert one == two


def test_a_stopped_run_goes_on_where_it_was(shop, tmp_path):
    """Ctrl-C while the teacher is trained, kill -9 while the student is; the same command then ends with the same weights as
    an undisturbed run.
    """
    folder, _ = shop
    for name in ("log.csv", "users.csv", "items.csv"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "shop.toml").write_text(
        TOML.replace("[teacher_training]\nepochs = 2", "[teacher_training]\nepochs = 30").replace(
            "[student_training]\nepochs = 2", "[student_training]\nepochs = 30"
        )
    )
    command = [sys.executable, "-m", "distilrec.cli", "run", "--config", "shop.toml", "--run"]
    whole = subprocess.run(
        [*command, "whole"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert whole.returncode == 0, whole.stderr

    def stop(what, how):
        progress = tmp_path / "killed" / "checkpoints" / what / "progress.json"
        with subprocess.Popen(
            [*command, "killed"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        ) as run:
            while not progress.is_file() and run.poll() is None:
                time.sleep(0.01)
            run.send_signal(how)
            said = run.stderr.read()
        assert not (tmp_path / "killed" / what).exists()
        return run.returncode, said

    code, said = stop("teacher/member-0", signal.SIGINT)
    assert code == 130 and said.endswith("Stopped. Run the same command again to resume.\n")
    code, said = stop("student", signal.SIGKILL)
    assert code == -signal.SIGKILL
    again = subprocess.run(
        [*command, "killed"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    for model in ("teacher/member-0", "student", "baseline"):
        one, two = (
            list((tmp_path / name / model).glob("model-*.safetensors"))
            for name in ("whole", "killed")
        )
        assert one[0].read_bytes() == two[0].read_bytes(), model
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())


def test_recommend(shop):
    folder, _ = shop
    bundle = folder / "runs" / "shop" / "bundle"
    done = cli("recommend", "--bundle", bundle, "--user_id", "u1", "--k", "4")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r" *i\d+ +-?\d+\.\d{4}  Thing number \d+", lines[0])
    scores = [float(line.split()[1]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    stranger = cli("recommend", "--bundle", bundle, "--user-id", "nobody", "--json")
    assert len(json.loads(stranger.stdout)["items"]) == 10
    assert (
        "user nobody is unknown"
        in cli("recommend", "--bundle", bundle, "--user-id", "nobody").stderr
    )


def test_recommend_with_what_a_user_has_had(bundle_with_repeats):
    """By default where the log has repeats."""

    def answered(*options):
        asked = (
            "recommend",
            "--bundle",
            bundle_with_repeats,
            "--user_id",
            "u1",
            "--k",
            "99",
            "--json",
        )
        return {item["item_id"] for item in json.loads(cli(*asked, *options).stdout)["items"]}

    every = answered()
    assert answered("--include-seen") == every
    had = set(distilrec.load(bundle_with_repeats).past("u1", limit=99))
    assert had and every - answered("--no-include-seen") == had


def test_recommend_says_why(shop):
    bundle = shop[0] / "runs" / "shop" / "bundle"
    answer = json.loads(
        cli(
            "recommend", "--bundle", bundle, "--user_id", "u1", "--k", "2", "--explain", "--json"
        ).stdout
    )
    recommender = distilrec.load(bundle)
    assert answer["known_user"]
    for item in answer["items"]:
        expected = recommender.explain("u1", item["item_id"], k=3)
        assert [(b["item_id"], b["place"]) for b in item["because"]] == [
            (e.item_id, e.place) for e in expected
        ]
    lines = cli(
        "recommend", "--bundle", bundle, "--user_id", "u1", "--k", "2", "--explain"
    ).stdout.splitlines()
    assert len(lines) == 2 * (1 + 3)
    assert re.fullmatch(r" +[+-]\d+\.\d{4}    Thing number \d+", lines[1])


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_the_seed_command(shop, extra):
    folder, _ = shop
    environment = {"DISTILREC_BUNDLE": str(folder / "runs" / "shop" / "bundle")}
    done = run(
        ROOT / "recommend.py",
        "--user_id",
        "u12",
        "--item_ids",
        "i4,i7,i1",
        *extra,
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    expected = distilrec.load(environment["DISTILREC_BUNDLE"]).recommend("u12", ["i4", "i7", "i1"])
    if extra:
        items = json.loads(done.stdout)["items"]
        assert [(item["item_id"], item["score"]) for item in items] == [
            (i, pytest.approx(s)) for i, s in expected
        ]
        assert [item["rank"] for item in items] == [1, 2, 3]
    else:
        assert [line.split()[0] for line in done.stdout.splitlines()] == [
            item for item, _ in expected
        ]


def test_help():
    for command in (
        "prepare",
        "train",
        "distill",
        "evaluate",
        "export",
        "recommend",
        "run",
        "data",
    ):
        assert command in cli("--help").stdout
        assert cli(command, "--help").returncode == 0
    assert cli("--version").stdout.strip() == distilrec.__version__
    assert "--item_ids" in run(ROOT / "recommend.py", "--help").stdout


def fails(message, *arguments, **keywords):
    done = cli(*arguments, **keywords)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert re.search(message, done.stderr), done.stderr
    assert "how to fix:" in done.stderr


def test_bundle_problems(shop, tmp_path):
    folder, _ = shop
    fails(r"there is no bundle in .*\n.*make demo", "recommend", "--user_id", "1", cwd=tmp_path)
    bundle = folder / "runs" / "shop" / "bundle"
    fails(
        "item 'x9' is not in the catalogue",
        "recommend",
        "--bundle",
        bundle,
        "--user_id",
        "u1",
        "--item_ids",
        "i1,x9",
    )
    fails(
        "--item_ids names no item",
        "recommend",
        "--bundle",
        bundle,
        "--user_id",
        "u1",
        "--item_ids",
        ",",
    )
    fails("k is 0", "recommend", "--bundle", bundle, "--user_id", "u1", "--k", "0")
    copy = shutil.copytree(bundle, tmp_path / "copy")
    weights = copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails(
        r"weights\.safetensors has \d+ bytes instead of",
        "recommend",
        "--bundle",
        copy,
        "--user_id",
        "u1",
    )


def test_wrong_use(tmp_path):
    fails("say which data", "run")
    fails("no public data set 'ml-9000m'", "run", "--dataset", "ml-9000m")
    fails("nowhere.toml does not exist", "run", "--config", "nowhere.toml")
    fails("is not a run folder", "train", "--run", tmp_path)
    fails("no public data set 'x'", "data", "fetch", "x")
    assert cli("recommend").returncode == 2
    assert cli("fly").returncode == 2
    assert cli("recommend", "--user_id", "1", "--k", "many").returncode == 2
    (tmp_path / "file").touch()
    small_run.write_tables(tmp_path)
    (tmp_path / "shop.toml").write_text(TOML)
    fails(
        r"storage_failed",
        "prepare",
        "--config",
        "shop.toml",
        "--run",
        tmp_path / "file" / "run",
        cwd=tmp_path,
    )


LOG = small_run.tables()["log"]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (None, r"log\.csv does not exist"),
        ("", r"log\.csv is empty"),
        (LOG.drop("timestamp"), "no column 'timestamp'; it has: user_id, item_id, event_type"),
        (
            LOG.with_columns(timestamp=pl.lit("noon")),
            "row 1: column 'timestamp' holds 'noon', which is not a time",
        ),
        (LOG.head(0), "has no rows"),
        (LOG.filter(pl.col("user_id") == "u1"), "1 user left"),
        (LOG.filter(pl.col("item_id") == LOG["item_id"][0]), "1 item left"),
    ],
    ids=["missing", "empty file", "column", "type", "no rows", "one user", "one item"],
)
def test_bad_logs(tmp_path, log, message):
    small_run.write_tables(tmp_path)
    (tmp_path / "shop.toml").write_text(TOML)
    (tmp_path / "log.csv").unlink()
    if isinstance(log, str):
        (tmp_path / "log.csv").write_text(log)
    elif log is not None:
        log.write_csv(tmp_path / "log.csv")
    fails(message, "run", "--config", "shop.toml", cwd=tmp_path)


def test_nan_features_and_all_cold_tests(tmp_path):
    small_run.write_tables(tmp_path)
    (tmp_path / "shop.toml").write_text(TOML)
    users = small_run.tables()["users"].with_columns(age=pl.lit("NaN"))
    users.write_csv(tmp_path / "users.csv")
    fails(r"users\.csv, row 1: feature 'age' is nan", "run", "--config", "shop.toml", cwd=tmp_path)
    small_run.write_tables(tmp_path)
    log = LOG.sort("timestamp").with_row_index()
    late = pl.col("index") >= int(0.85 * log.height)
    cold = log.with_columns(
        item_id=pl.when(late).then(pl.format("cold-{}", "index")).otherwise("item_id")
    )
    cold.drop("index").write_csv(tmp_path / "log.csv")
    fails(
        "test part has no item that any model could recommend",
        "run",
        "--config",
        "shop.toml",
        cwd=tmp_path,
    )


def test_configurations_survive_json(tmp_path):
    (tmp_path / "a.toml").write_text(TOML)
    config = read_config(tmp_path / "a.toml")
    assert config.data.interactions == str(tmp_path / "log.csv")
    assert msgspec.json.decode(msgspec.json.encode(config), type=RunConfig) == config


def test_a_fault_is_told_from_a_missed_gate(monkeypatch, capfd):
    """Exit code 1 is what `gate`, `drift` and `refresh` say; a stack trace is to be reported."""

    def broken(*_, **__):
        raise RuntimeError("a line of ours is wrong")

    app = importlib.import_module("distilrec.cli.app")
    monkeypatch.setattr(app, "app", broken)
    with pytest.raises(SystemExit) as ended:
        app.main(["gate"])
    assert ended.value.code == 70
    said = capfd.readouterr().err
    assert "RuntimeError: a line of ours is wrong" in said
    assert "a fault of distilrec" in said
