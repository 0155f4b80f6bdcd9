"""`distilrec tune` and `distilrec gate`, as a user calls them."""

from __future__ import annotations

import shutil
import tomllib

import msgspec
import pytest

from distilrec import runs
from distilrec.cli import main
from distilrec.data.dataset import load_dataset
from distilrec.distill.distillation import DistillationConfig
from distilrec.errors import ConfigError, FileMissingError
from distilrec.networks.build import StudentConfig
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.report.gate import read_thresholds
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(finished_run, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "run")
    return tmp_path / "run"


def write(path, text):
    path.write_text(text)
    return path


def test_a_bundle_that_is_good_enough_passes(copied, tmp_path, capsys):
    gate = write(
        tmp_path / "gate.toml",
        '[quality]\n"ndcg@10" = 0.01\nauc = 0.2\n[retention]\n"hit_rate@10" = 0.1\n[improvement]\n"ndcg@10" = -0.9\n'
        "[latency]\np50 = 1e6\n[size]\nparameters = 1e6\nbytes = 1e7\n",
    )
    main(["gate", "--run", str(copied), "--thresholds", str(gate)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(line.startswith("    ok  ") for line in lines)


@pytest.mark.parametrize(
    "text",
    ['[quality]\n"ndcg@10" = 0.999', "[size]\nparameters = 10", "[latency]\np99 = 0.001", '[retention]\n"ndcg@10" = 99',
     '[improvement]\n"ndcg@10" = 0.99'],
)  # fmt: skip
def test_one_missed_threshold_is_exit_code_1(text, copied, tmp_path, capsys):
    gate = write(
        tmp_path / "gate.toml", text + "\n[size]\nbytes = 1e9\n" if "[size]" not in text else text
    )
    with pytest.raises(SystemExit) as stopped:
        main(["gate", "--run", str(copied), "--thresholds", str(gate)])
    assert stopped.value.code == 1
    assert capsys.readouterr().out.count("FAILED") == 1


def test_the_gate_measures_the_bundle_itself(copied, tmp_path):
    """Not what an earlier evaluation said: a worse bundle in its place does not pass."""
    dataset = load_dataset(copied / "data")
    run = runs.open_run(copied)
    gate = read_thresholds(
        write(tmp_path / "gate.toml", "[quality]\nauc = 0.0\n[size]\nparameters = 1e9")
    )
    before = runs.gate(run, dataset, gate)
    shutil.rmtree(copied / "bundle")
    shutil.copytree(copied / "bundle-baseline", copied / "bundle")
    after = runs.gate(run, dataset, gate)
    assert after[0].measured != before[0].measured


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no threshold"),
        ('[quality]\n"ndcg@5" = 0.1', "quality.ndcg@5, which is not measured"),
        ("[speed]\np50 = 3", "there is no key `speed`"),
        ("[quality", "gate.toml"),
        ('[size]\nbytes = "small"', "expected `float`"),
    ],
)
def test_thresholds_that_make_no_sense(text, message, copied, tmp_path):
    path = write(tmp_path / "gate.toml", text)
    with pytest.raises(ConfigError, match=message):
        runs.gate(runs.open_run(copied), load_dataset(copied / "data"), read_thresholds(path))
    with pytest.raises(FileMissingError):
        read_thresholds(tmp_path / "nothing.toml")


def test_a_search_is_kept_and_goes_on(copied, capsys):
    main(["tune", "--run", str(copied), "--trials", "2"])
    first = tomllib.loads(capsys.readouterr().out)
    assert set(first) == {"student", "student_training", "distillation"}
    again = runs.tune_student(
        runs.open_run(copied), load_dataset(copied / "data"), trials=1, minutes=5
    )
    assert 1 <= again.trial <= 3
    written = tomllib.loads((copied / "tuned.toml").read_text())
    assert msgspec.convert(written["student"], StudentConfig) == again.student
    assert msgspec.convert(written["student_training"], TrainingConfig) == again.training
    assert msgspec.convert(written["distillation"], DistillationConfig) == again.distillation


def test_the_first_trial_is_the_given_configuration(copied):
    run, dataset = runs.open_run(copied), load_dataset(copied / "data")
    chosen = runs.tune_student(run, dataset, trials=1, minutes=5)
    assert chosen.trial == 1
    assert chosen.student == run.config.student
    assert chosen.training == run.config.student_training
    assert chosen.distillation == run.config.distillation
    # It is the same training as that of the run: the same validation figure comes out.
    assert chosen.validation_ndcg == load_model(copied / "student", dataset).best_ndcg


@pytest.mark.parametrize(
    "student", [MlpConfig(dim=8, max_history=16), SoftTreeConfig(depth=2, inputs=5, max_history=16)]
)
def test_every_kind_of_student_can_be_tuned(student, copied):
    run = runs.open_run(copied)
    config = msgspec.structs.replace(
        run.config, student=student, student_training=TrainingConfig(epochs=1, batch_size=16)
    )
    (copied / "config.json").write_bytes(msgspec.json.encode(config))
    chosen = runs.tune_student(
        runs.open_run(copied), load_dataset(copied / "data"), trials=2, minutes=5
    )
    assert type(chosen.student) is type(student)
    assert 0 < chosen.validation_ndcg < 1


def test_a_search_needs_a_budget(copied):
    with pytest.raises(ConfigError, match="does nothing"):
        runs.tune_student(runs.open_run(copied), load_dataset(copied / "data"), trials=0, minutes=5)
