"""docs/web-file.md: its reader, which knows nothing of distilrec, reads a web file."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from distilrec import load
from distilrec.bundle.drec import DREC_VERSION, MARK, WITH_VISITS, decode_drec, read_drec
from distilrec.bundle.format import read_bundle
from distilrec.engine.web import KINDS, write_drec
from distilrec.errors import (
    BundleCorruptedError,
    BundleMissingError,
    BundleVersionError,
    ConfigError,
)
from distilrec.export.export import export_bundle
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests import ROOT, small_run

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "web-file.md").read_text(encoding="utf-8")
(READER,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module", params=["plain", "neighbours", "visits"])
def folder(request, small, tmp_path_factory):
    config = small_run.STUDENTS["recurrent"]
    if request.param == "neighbours":
        config = msgspec.structs.replace(config, neighbours=5, repeat_events=20)
    if request.param == "visits":
        config = msgspec.structs.replace(config, neighbours=5, repeat_events=9, visit_gap=7200.0)
        trained = small_run.timed_student(config, small)
    else:
        trained = train_model(config, small, TrainingConfig(epochs=2, batch_size=16), seed=0)
    folder = tmp_path_factory.mktemp(request.param)
    export_bundle(trained, small, folder / "bundle")
    write_drec(read_bundle(folder / "bundle"), folder / "student.drec")
    return folder


def test_the_reader_of_the_page(folder):
    code = READER.replace("runs/ml-100k/student.drec", str(folder / "student.drec"))
    assert code != READER
    blocked = "import sys; sys.modules['distilrec'] = sys.modules['msgspec'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for runtime in ("numba", "numpy"):
        recommender = load(folder / "student.drec", runtime=runtime)
        expected = [answer.item_id for answer in recommender.recommend("nobody known", k=3)]
        assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("precision", ["half", "float32"])
def test_what_is_lost(folder, tmp_path, precision):
    """Vectors up to half a step of their row, matrices up to 11 bits; all else is the same."""
    bundle = read_bundle(folder / "bundle")
    write_drec(bundle, tmp_path / "other.drec", precision)
    found = read_drec(tmp_path / "other.drec")
    steps = np.abs(bundle.weights.vectors).max(1, keepdims=True) / 127
    assert (np.abs(found.weights.vectors - bundle.weights.vectors) <= 0.51 * steps).all()
    own, theirs = found.weights.pack(), bundle.weights.pack()
    assert own.keys() == theirs.keys()
    for name, array in theirs.items():
        if name != "vectors":
            loose = precision == "half" and array.ndim == 2 and array.dtype == np.float32
            np.testing.assert_allclose(
                own[name], array, 2**-11 if loose else 0, 1e-7 if loose else 0
            )
            assert own[name].dtype == array.dtype
    np.testing.assert_array_equal(own["decay"], theirs["decay"])
    assert found.catalogue.ids == bundle.catalogue.ids
    assert found.catalogue.titles == bundle.catalogue.titles
    assert found.catalogue.attributes.keys() == bundle.catalogue.attributes.keys()
    for name, array in bundle.catalogue.attributes.items():
        np.testing.assert_array_equal(found.catalogue.attributes[name], array)
    assert found.history is None
    assert found.manifest.model_version == bundle.manifest.model_version


def test_the_mark_and_the_number_are_those_of_the_page():
    assert MARK.hex(" ").upper() in PAGE
    assert f"format {DREC_VERSION}," in PAGE
    assert f"format {WITH_VISITS} " in PAGE


def test_only_a_student_that_knows_visits_needs_the_newer_format(folder):
    version = WITH_VISITS if folder.name.startswith("visits") else DREC_VERSION
    assert (folder / "student.drec").read_bytes()[8:12] == bytes([version, 0, 0, 0])


def test_damaged_files_are_refused(folder, tmp_path):
    data = (folder / "student.drec").read_bytes()
    path = tmp_path / "student.drec"
    rng = np.random.default_rng(0)
    for place in [*rng.integers(len(data), size=40).tolist(), 0, 14, 20, 47, 48]:
        wrong = bytearray(data)
        wrong[place] ^= 1 << int(rng.integers(8))
        with pytest.raises((BundleCorruptedError, BundleVersionError)):
            decode_drec(bytes(wrong), path)
    for length in (0, 7, 47, 48, 400, len(data) - 1):
        with pytest.raises(BundleCorruptedError, match="student.drec"):
            decode_drec(data[:length], path)
    with pytest.raises(BundleVersionError, match="has format 3; this distilrec reads 1 and 2"):
        decode_drec(data[:8] + b"\x03" + data[9:], path)
    with pytest.raises(BundleMissingError):
        read_drec(tmp_path / "none.drec")


@pytest.mark.parametrize("kind", ["mlp", "soft_tree"])
def test_other_kinds_are_refused_by_name(small, tmp_path, kind):
    config = small_run.STUDENTS[kind]
    trained = train_model(config, small, TrainingConfig(epochs=1, batch_size=16), seed=0)
    export_bundle(trained, small, tmp_path / "bundle")
    with pytest.raises(ConfigError, match=f"'{kind}' cannot be exported for the web") as caught:
        write_drec(read_bundle(tmp_path / "bundle"), tmp_path / "student.drec")
    assert KINDS[0] in caught.value.fix
    assert not (tmp_path / "student.drec").exists()


def test_an_unknown_precision_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="there is no precision 'int4'"):
        write_drec(read_bundle(folder / "bundle"), tmp_path / "student.drec", "int4")
