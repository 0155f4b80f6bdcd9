"""`distilrec tune` and `distilrec gate`, as a user calls them."""

from __future__ import annotations

import json
import shutil
import tomllib

import msgspec
import pytest

from distilrec import runs
from distilrec.cli import main
from distilrec.data.dataset import load_dataset
from distilrec.distill.distillation import DistillationConfig
from distilrec.errors import ConfigError, FileMissingError
from distilrec.files import read_json
from distilrec.networks.build import StudentConfig
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.report.comparison import Comparison, Trials
from distilrec.report.gate import read_thresholds
from distilrec.report.page import verdict
from distilrec.runs.config import BaselineConfig
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model

pytestmark = pytest.mark.slow


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
    assert set(first) == {"student", "student_training", "distillation", "baseline", "tuned"}
    assert first["tuned"] == {"student": 2, "baseline": 2}
    again = runs.tune_students(
        runs.open_run(copied), load_dataset(copied / "data"), trials=1, minutes=5
    )
    assert 1 <= again.student.trial <= 3
    assert again.student.trials == again.baseline.trials == 3
    written = tomllib.loads((copied / "tuned.toml").read_text())
    assert msgspec.convert(written["student"], StudentConfig) == again.student.student
    assert msgspec.convert(written["student_training"], TrainingConfig) == again.student.training
    assert (
        msgspec.convert(written["distillation"], DistillationConfig) == again.student.distillation
    )
    baseline = written["baseline"]
    assert msgspec.convert(baseline["student"], StudentConfig) == again.baseline.student
    assert msgspec.convert(baseline["training"], TrainingConfig) == again.baseline.training
    assert again.baseline.distillation is None


def test_one_of_the_two_students_is_tuned(copied, capsys):
    main(["tune", "--run", str(copied), "--trials", "1", "--only", "baseline"])
    assert set(tomllib.loads(capsys.readouterr().out)) == {"baseline", "tuned"}
    with pytest.raises(ConfigError, match="'teacher' is not what can be tuned"):
        runs.tune_students(
            runs.open_run(copied),
            load_dataset(copied / "data"),
            trials=1,
            minutes=5,
            only="teacher",
        )


def test_the_first_trial_is_the_given_configuration(copied):
    run, dataset = runs.open_run(copied), load_dataset(copied / "data")
    tuned = runs.tune_students(run, dataset, trials=1, minutes=5)
    for chosen, folder in ((tuned.student, "student"), (tuned.baseline, "baseline")):
        assert chosen.trial == 1
        assert chosen.student == run.config.student
        assert chosen.training == run.config.student_training
        # It is the same training as that of the run: the same validation figure comes out.
        assert chosen.validation_ndcg == load_model(copied / folder, dataset).best_ndcg
    assert tuned.student.distillation == run.config.distillation


def test_what_was_tuned_is_trained_and_the_report_says_so(copied):
    """The sections that `tune` writes are those of a run; the student without distillation keeps its own."""
    run, dataset = runs.open_run(copied), load_dataset(copied / "data")
    tuned = runs.tune_students(run, dataset, trials=2, minutes=5)
    content = json.loads((copied / "config.json").read_text())
    content |= tomllib.loads((copied / "tuned.toml").read_text())
    content["baseline"]["training"]["epochs"] = 2
    content["baseline"]["student"]["dropout"] = 0.4
    (copied / "config.json").write_text(json.dumps(content))
    run = runs.open_run(copied)
    runs.distill_student(run, dataset)
    baseline = runs.train_baseline(run, dataset)
    assert len(baseline.record.curve) == 2
    assert baseline.record.config.dropout == 0.4
    assert baseline.record.config.scales == tuned.baseline.student.scales
    runs.export(run, dataset)
    lines = verdict(runs.evaluate(run, dataset))
    assert "Both students were tuned on validation with the same budget: 2 trials each." in lines


@pytest.mark.parametrize(
    ("student", "alone", "words"),
    [
        (0, 0, "Neither student was tuned"),
        (5, 0, "the one without distillation was not"),
        (5, 4, "the distilled one in 5 trials, the one without distillation in 4"),
    ],
)
def test_the_report_says_which_student_was_tuned(finished_run, student, alone, words):
    comparison = read_json(finished_run.places.comparison, Comparison, error=ConfigError, fix="")
    assert "Neither student was tuned" in "".join(verdict(comparison))
    changed = msgspec.structs.replace(comparison, trials=Trials(student, alone))
    assert words in "".join(verdict(changed))


def test_the_students_that_are_compared_are_of_one_size(finished_run):
    config = finished_run.config
    other = msgspec.structs.replace(config.student, dim=4)
    with pytest.raises(ConfigError, match="what is compared is one size") as at:
        msgspec.structs.replace(config, baseline=BaselineConfig(student=other))
    assert "set dim = 8 in [baseline.student]" in str(at.value)
    with pytest.raises(ConfigError, match="what is compared is one size"):
        msgspec.structs.replace(config, baseline=BaselineConfig(student=MlpConfig(dim=8)))
    free = msgspec.structs.replace(config.student, dropout=0.5, scales=3)
    assert msgspec.structs.replace(config, baseline=BaselineConfig(student=free))


@pytest.mark.parametrize(
    "student", [MlpConfig(dim=8, max_history=16), SoftTreeConfig(depth=2, inputs=5, max_history=16)]
)
def test_every_kind_of_student_can_be_tuned(student, copied):
    run = runs.open_run(copied)
    config = msgspec.structs.replace(
        run.config, student=student, student_training=TrainingConfig(epochs=1, batch_size=16)
    )
    (copied / "config.json").write_bytes(msgspec.json.encode(config))
    tuned = runs.tune_students(
        runs.open_run(copied), load_dataset(copied / "data"), trials=2, minutes=5
    )
    for chosen in (tuned.student, tuned.baseline):
        assert type(chosen.student) is type(student)
        assert 0 < chosen.validation_ndcg < 1


def test_a_search_needs_a_budget(copied):
    with pytest.raises(ConfigError, match="does nothing"):
        runs.tune_students(
            runs.open_run(copied), load_dataset(copied / "data"), trials=0, minutes=5
        )
