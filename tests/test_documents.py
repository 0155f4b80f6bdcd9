"""The examples of README.md and docs/: Python is run, configurations are read, commands are parsed, bodies are decoded."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import yaml

from distilrec.bundle.export import export_bundle
from distilrec.cli import app
from distilrec.config import RunConfig
from distilrec.data.fetch import DATASETS
from distilrec.data.preparation import prepare_dataset
from distilrec.evaluate.gate import Thresholds
from distilrec.models import train_model
from distilrec.serve.app import _api, _kserve
from distilrec.serve.schemas import RecommendRequest
from distilrec.settings import converted
from distilrec.students.recurrent import RecurrentConfig
from distilrec.training.trainer import TrainingConfig
from tests.small_run import tables

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


def blocks(language: str) -> list:
    """Every block of a language, named by its page and place in it."""
    return [
        pytest.param(text, id=f"{name}-{place}")
        for name, page in TEXTS.items()
        for place, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL))
    ]


def commands() -> list:
    """Every line of code that begins with distilrec, without what a shell would do with it."""
    found = set()
    for page in TEXTS.values():
        lines = re.findall(r"^(?:    )+(distilrec .*)$", page, re.MULTILINE)
        lines += [line for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
        lines += re.findall(r"`(distilrec \w[^`]*)`", page)
        found |= {re.split(r"  +#|>>|\|\||\\$", line)[0].strip() for line in lines if line.startswith("distilrec ")}
    return sorted(found)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """runs/ml-100k/bundle in a folder: a tiny catalogue with the users, items and features that the documents name."""
    rng = np.random.default_rng(0)
    items = [*range(1, 41), 50, 101, 456, 789]
    rows = [
        (user, int(item), 1_600_000_000 + 86_400 * place)
        for user in [*range(1, 30), 123]
        for place, item in enumerate(rng.choice(items, 12, replace=False))
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").with_columns(rating=4.0)
    users = pl.DataFrame({"user_id": [*range(1, 30), 123], "age": 30, "gender": "F", "occupation": "writer"})
    films = pl.DataFrame({"item_id": items, "release_year": 1995, "genres": "Drama|Comedy"}).with_columns(
        title=pl.format("Film {}", "item_id")
    )
    folder = tmp_path_factory.mktemp("films")
    dataset = prepare_dataset(log, DATASETS["ml-100k"].schema, users=users, items=films, name="films")
    student = train_model(RecurrentConfig(dim=8), dataset, TrainingConfig(epochs=1), seed=0)
    export_bundle(student, dataset, folder / "runs" / "ml-100k" / "bundle")
    return folder


QUICK_START = "runs/mine"  # the block of docs/index.md has a test of its own


@pytest.mark.parametrize("code", [each for each in blocks("python") if QUICK_START not in each.values[0]])
def test_python_runs(code, films, tmp_path):
    """What a page leaves to its reader (a model, a configuration) is given here."""
    given = ""
    if "my_model(" in code:
        small = tmp_path / "small"
        small.mkdir()
        for name, table in tables().items():
            table.write_csv(small / f"{name}.csv")
        given = (
            "import sys, numpy, pathlib\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "from distilrec import run_all\n"
            "from tests.small_run import small_config\n"
            f"folder = pathlib.Path({str(small)!r})\n"
            "config = small_config(folder)\n"
            "my_model = lambda histories: numpy.ones((len(histories), 42), numpy.float32)\n"
        )
    done = subprocess.run(
        [sys.executable, "-c", given + code], capture_output=True, text=True, check=False, cwd=films, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("toml"))
def test_configurations_are_valid(text):
    told = tomllib.loads(text)
    if "latency" in told:
        converted(told, Thresholds, "gate.toml")
        return
    told.setdefault("data", {})
    if "dataset" not in told["data"]:
        told["data"].setdefault("interactions", "log.csv")
    converted(told, RunConfig, "my.toml")


@pytest.mark.parametrize("text", blocks("json"))
def test_bodies_are_valid(text):
    msgspec.json.decode(text, type=RecommendRequest)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_valid(text):
    assert yaml.safe_load(text)


@pytest.mark.parametrize("line", commands())
def test_commands_exist_with_their_options(line):
    words = [word for word in shlex.split(line.replace("…", "x").split(" and ")[0]) if word not in {"x", "[--explain]"}]
    words = [word for word in words[1:] if not word.startswith("#")]
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    names = [word for word in words if not word.startswith("--")]
    command = app[names[0]]
    if names[0] == "data":
        command = command[names[1]]
    known = {name for argument in command.assemble_argument_collection() for name in argument.names}
    assert options <= known, f"{line}: no option {sorted(options - known)}"


def test_paths_of_the_service_exist():
    """Every path below /v1 and /v2 that a page names is one of the service's."""
    from unittest.mock import Mock

    from distilrec.serve.service import Service

    table = [*_api(Mock(spec=Service)), *_kserve(Mock(spec=Service))]
    patterns = [re.sub(r"\{[^}]+\}", "[^/]+", re.sub(r"\{(\w+):path\}", r"{\1}", endpoint.path)) for endpoint in table]
    for name, page in TEXTS.items():
        for path in re.findall(r"(?<![\w.])(/v[12](?:/[\w{}:-]+)*)", page):
            assert any(re.fullmatch(pattern, path) for pattern in [*patterns, "/v1", "/v2"]), f"{name}: {path}"
