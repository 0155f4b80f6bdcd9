"""docs/bundle-format.md: its reader, which knows nothing of distilrec, reads a bundle of every kind; its tables are whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from distilrec import load
from distilrec.bundle.format import erase_user, read_bundle, write_bundle
from distilrec.bundle.manifest import FORMAT_VERSION, FileEntry, Golden, Manifest, SearchInfo
from distilrec.bundle.privacy import PrivacyRecord
from distilrec.export.export import export_bundle
from distilrec.export.search import BundleConfig
from distilrec.features import encoding
from distilrec.targets import EventRole, Targets
from distilrec.testing.students import small_dataset
from distilrec.training.trained import train_model
from distilrec.training.trainer import TrainingConfig
from tests import ROOT, small_run

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8")
(READER,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


STUDENTS = {
    **small_run.STUDENTS,
    "neighbours": msgspec.structs.replace(
        small_run.STUDENTS["recurrent"], neighbours=5, repeat_events=0
    ),
    "time": msgspec.structs.replace(
        small_run.STUDENTS["recurrent"],
        time=True,
        timezone="Europe/Berlin",
        neighbours=5,
        repeat_events=20,
    ),
}
STUDENTS["context"] = STUDENTS["time"]
STUDENTS["visits"] = msgspec.structs.replace(
    STUDENTS["time"], time=False, repeat_events=8, visit_gap=7200.0
)


STUDENTS["repeats"] = msgspec.structs.replace(STUDENTS["neighbours"], repeat_events=8)


DISLIKES = {f"{name} with dislikes": config for name, config in small_run.STUDENTS.items()}
TARGETS = Targets((EventRole("buy"), EventRole("view", role="negative")))


@pytest.fixture(scope="module", params=sorted({**STUDENTS, **DISLIKES}))
def exported(request, small, tmp_path_factory) -> Path:
    config = {**STUDENTS, **DISLIKES}[request.param]
    if request.param in DISLIKES:
        small = small_dataset(TARGETS)
    if request.param == "repeats":
        small = replace(small, info=msgspec.structs.replace(small.info, repeats=True))
    if request.param == "context":
        small = small_run.in_context(small)
    if request.param in ("time", "context", "visits"):
        trained = small_run.timed_student(config, small)
    else:
        trained = train_model(config, small, TrainingConfig(epochs=2, batch_size=16), seed=0)
    if request.param == "repeats":  # what was taken is the best answer, where it is one
        with torch.no_grad():
            trained.model.neighbours.repeats += 3
    folder = tmp_path_factory.mktemp(request.param)
    export_bundle(trained, small, folder, teacher=trained, metrics={"ndcg@10": 1e-05, "é": 0.5})
    return folder


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """A copy of a bundle that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def read(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the page's reader on a folder, in an interpreter that cannot import distilrec."""
    code = READER.replace("runs/ml-100k/bundle", str(folder))
    assert code != READER
    blocked = "import sys; sys.modules['distilrec'] = sys.modules['safetensors'] = sys.modules['msgspec'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False
    )


def test_the_reader_answers_like_the_engine(exported):
    done = read(exported)
    assert done.returncode == 0, done.stderr
    user, answer = json.loads(done.stdout)
    (now,) = re.findall(r"^NOW = (\S+)", READER, re.MULTILINE)
    expected = load(exported).recommend(user, k=5, now=int(now))
    assert [item for item, _ in answer] == [item for item, _ in expected]
    np.testing.assert_allclose(
        [score for _, score in answer], [score for _, score in expected], 1e-4, 1e-4
    )


def test_the_reader_reads_a_bundle_from_which_a_user_was_erased(copied):
    first, second = load(copied).some_users(2)
    before = read_bundle(copied).manifest.model_version
    assert erase_user(copied, first)
    done = read(copied)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == second
    assert read_bundle(copied).manifest.model_version == before


def test_the_reader_reads_other_searches(small, tmp_path):
    """Fields of the search that have their default are not in the file, and not in the hash."""
    trained = train_model(
        small_run.STUDENTS["recurrent"], small, TrainingConfig(epochs=1, batch_size=16), seed=0
    )
    export_bundle(
        trained, small, tmp_path, config=BundleConfig(search="quantised"), with_history=False
    )
    assert json.loads((tmp_path / "manifest.json").read_text())["search"]["kind"] == "quantised"
    done = read(tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("name", ["weights.safetensors", "catalogue.safetensors", "manifest.json"])
def test_the_reader_refuses_an_edited_bundle(copied, name):
    assert read(copied).returncode == 0
    path = copied / name
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b'"small"', b'"smale"') if name == "manifest.json" else data[:-1] + b"\x7f"
    )
    assert path.read_bytes() != data
    done = read(copied)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_the_reader_refuses_weights_that_give_other_answers(copied):
    """With right hashes: only the golden answers notice."""
    found = read_bundle(copied)
    weights = replace(found.weights, vectors=found.weights.vectors * np.float32(1.05))
    write_bundle(copied, found.manifest, weights, found.catalogue, found.history)
    done = read(copied)
    assert done.returncode == 1
    assert "Not equal to tolerance" in done.stderr


def test_every_array_is_specified(exported):
    bundle = read_bundle(exported)
    assert bundle.history
    for contents in (bundle.weights, bundle.catalogue, bundle.history):
        for name in contents.pack():
            kind, colon, _ = name.removesuffix(".text").removesuffix(".offsets").partition(":")
            assert f"`{kind}:NAME`" in PAGE if colon else f"`{kind}`" in PAGE, (
                f"docs/bundle-format.md lacks {name}"
            )


def test_every_field_of_the_manifest_is_specified():
    assert f"format {FORMAT_VERSION}," in PAGE
    kinds = [
        kind
        for kind in vars(encoding).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    ]
    for kind in (Manifest, FileEntry, Golden, SearchInfo, PrivacyRecord, *kinds):
        for field in msgspec.structs.fields(kind):
            assert re.search(rf'[`"]{field.name}[`"]', PAGE), (
                f"docs/bundle-format.md lacks {kind.__name__}.{field.name}"
            )
        tag = kind.__struct_config__.tag
        assert tag is None or f"`{tag}`" in PAGE, (
            f"docs/bundle-format.md lacks the feature kind {tag}"
        )
