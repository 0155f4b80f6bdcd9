"""`distilrec sweep`, as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import msgspec
import pytest

from distilrec import runs
from distilrec.cli import main
from distilrec.distill.sizes import SweepConfig, students_of_sizes
from distilrec.errors import ConfigError
from distilrec.networks.build import StudentConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.networks.student import StudentSettings
from distilrec.privacy.accounting import PrivateTrainingConfig
from distilrec.report.sweep import TEACHER, WITH, WITHOUT
from distilrec.runs.config import BaselineConfig
from distilrec.runs.sizes import SWEEP
from tests import small_run

pytestmark = pytest.mark.slow


def sweep_of(folder):
    return SWEEP.read(folder / "sweep").about


def test_a_sweep_measures_both_arms_and_chooses(copied, capsys):
    main(["sweep", "--run", str(copied), "--sizes", "8,4", "--shares", "0.5,1", "--seeds", "2"])
    said = capsys.readouterr()
    sweep = sweep_of(copied)
    assert sweep.sizes() == [4, 8] and sweep.shares() == [0.5, 1.0] and sweep.seeds == 2
    assert {(point.size, point.share, point.arm) for point in sweep.points} == {
        (0, 1.0, TEACHER),
        *((size, share, arm) for size in (4, 8) for share in (0.5, 1.0) for arm in (WITH, WITHOUT)),
    }
    for point in sweep.students():
        assert len(point.validation_by_seed) == len(point.test_by_seed) == 2
        assert point.cost.size > 0 and point.cost.parameters > 0
        assert (point.cost.latency is None) == (point.share < 1)
    assert sweep.point(4, WITH).cost.size < sweep.point(8, WITH).cost.size
    # The student of the run is one of them, measured through its bundle as by the report.
    report = json.loads((copied / "comparison.json").read_text())
    own = next(row for row in report["rows"] if row["name"] == "student")
    assert sweep.point(8, WITH).test_by_seed[0] == pytest.approx(own["ndcg_by_seed"][0])
    assert not (copied / "sweep" / "8-seed0" / "student").exists()
    # What is printed ends with a section that a configuration can have.
    section = (copied / "sweep.toml").read_text()
    assert said.out.endswith(f"\n{section}")
    student = msgspec.convert(tomllib.loads(section)["student"], StudentConfig)
    assert student.dim == sweep.choice.size
    assert "sweep: 16 of 16: 8 floats without distillation, 50% of the users, seed 1" in said.err
    assert "to go" in said.err
    assert not list((copied / "sweep").rglob("history*"))
    assert "Where distillation pays: small" in (copied / "sweep.html").read_text()


def test_the_same_command_again_trains_and_measures_nothing(copied, capsys):
    arguments = ["sweep", "--run", str(copied), "--sizes", "4"]
    main(arguments)
    files = sorted((copied / "sweep").rglob("m*.json"))
    assert files
    before = {file: file.stat().st_mtime_ns for file in files}
    first = sweep_of(copied)
    main(arguments)
    assert {file: file.stat().st_mtime_ns for file in files} == before
    again = sweep_of(copied)
    assert again.gains == first.gains and again.choice == first.choice
    # Other sizes use what is there.
    main([*arguments[:-1], "4,8"])
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_what_is_missing_is_made_first(tmp_path, capsys):
    """A run that has nothing but its configuration file."""
    small_run.write_tables(tmp_path)
    (tmp_path / "my.toml").write_text(
        '[data]\ninteractions = "log.csv"\nname = "shop"\n[data.schema]\ntimestamp = "timestamp"\n'
        '[teacher]\nkind = "dnn"\ndim = 8\nhidden = 16\n[teacher_training]\nepochs = 2\n'
        '[student]\nkind = "mlp"\n[student_training]\nepochs = 2\n[labels]\ntop_k = 5\nsamples = 5\n'
        "[sweep]\nsizes = [2, 3]\nloss = 0.1\n"
    )
    main(["sweep", "--config", "my.toml"])
    sweep = sweep_of(tmp_path / "runs" / "shop")
    assert (sweep.kind, sweep.sizes(), sweep.loss) == ("mlp", [2, 3], 0.1)
    assert (tmp_path / "runs" / "shop" / "labels" / "manifest.json").is_file()
    # Without sizes: those that fit the catalogue of about 40 items.
    main(["sweep", "--config", "my.toml", "--sizes", "4", "--minutes", "0.0001", "--seeds", "9"])
    assert sweep_of(tmp_path / "runs" / "shop").missing == 16
    assert "The time ran out: 16 trainings are missing." in capsys.readouterr().out


def test_a_killed_sweep_goes_on(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config["student_training"]["epochs"] = 30
    config["student_training"]["patience"] = 30
    (copied / "config.json").write_text(json.dumps(config))
    whole = shutil.copytree(copied, tmp_path / "whole")
    command = [sys.executable, "-m", "distilrec.cli", "sweep", "--sizes", "4,6", "--run"]
    environment = {**os.environ, "COLUMNS": "200"}
    progress = copied / "sweep" / "6-seed0" / "checkpoints" / "student" / "progress.json"
    with subprocess.Popen(
        [*command, str(copied)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as killed:
        while not progress.is_file() and killed.poll() is None:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (copied / "sweep.html").exists()
    for folder in (copied, whole):
        done = subprocess.run(
            [*command, str(folder)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for model in ("4-seed0/student", "6-seed0/student", "6-seed0/baseline"):
        one, two = (
            next((folder / "sweep" / model).glob("model-*.safetensors")).read_bytes()
            for folder in (copied, whole)
        )
        assert one == two, model
    assert sweep_of(copied).gains == sweep_of(whole).gains
    assert not (copied / "sweep" / "bundles").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0"], "sizes is 0"),
        (["--sizes", "4,-1"], "sizes is -1"),
        (["--sizes", "4,4"], "sizes has a value twice"),
        (["--sizes", "small"], "--sizes is 'small'"),
        (["--sizes", "4.5"], "--sizes is '4.5'"),
        (["--sizes", ""], "--sizes is ''"),
        (["--shares", "0"], "shares is 0"),
        (["--shares", "1.5"], "shares is 1.5"),
        (["--shares", "nan"], "shares is nan"),
        (["--shares", "half"], "--shares is 'half'"),
        (["--seeds", "0"], "seeds is 0"),
        (["--loss", "1"], "loss is 1"),
        (["--loss", "0"], "loss is 0"),
        (["--minutes", "-1"], "minutes is -1"),
        (["--seed", "1"], "a run that is there has its seed"),
        (["--run", "nowhere"], "nowhere is not a run folder"),
        (["--dataset", "ml-100k", "--config", "my.toml"], "say which data"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(options, message, copied, capsys):
    run = [] if "--run" in options or "--dataset" in options else ["--run", str(copied)]
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", *run, *options])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said and "how to fix:" in said
    assert not (copied / "sweep").exists()


def test_bad_settings_in_python():
    with pytest.raises(ConfigError, match="shares is empty"):
        SweepConfig(shares=())
    with pytest.raises(ConfigError, match="sizes is 0") as caught:
        SweepConfig(sizes=(4, 0))
    assert caught.value.context["parameter"] == "sizes"


def test_a_share_with_nobody_to_validate_on_is_refused(copied):
    run = runs.open_run(copied)
    dataset = runs.open_data(run)
    nobody = dataset.with_training_users(dataset.offsets[1:] < 0)
    assert len(nobody.training_rows()) == 0
    late = msgspec.structs.replace(dataset.info, warm_users=1)
    import dataclasses

    only_one = dataclasses.replace(
        dataset, info=late, validation_end=dataset.train_end, train_end=dataset.train_end
    )
    with pytest.raises(ConfigError, match="a share of 0.1 of the users leaves nothing to choose"):
        runs.sweep(run, only_one, SweepConfig(sizes=(4,), shares=(0.1,)))


def test_private_students_have_no_labels_to_compare(copied):
    run = runs.open_run(copied)
    config = msgspec.structs.replace(run.config, privacy=PrivateTrainingConfig())
    (copied / "config.json").write_bytes(msgspec.json.encode(config))
    run = runs.open_run(copied)
    with pytest.raises(ConfigError, match="a private student has no labels"):
        runs.sweep(run, runs.open_data(run))


def test_a_student_without_distillation_keeps_settings_of_its_own(copied):
    run = runs.open_run(copied)
    student = msgspec.structs.replace(run.config.student, expansion=2)
    config = msgspec.structs.replace(run.config, baseline=BaselineConfig(student=student))
    (copied / "config.json").write_bytes(msgspec.json.encode(config))
    run = runs.open_run(copied)
    sweep = runs.sweep(run, runs.open_data(run), SweepConfig(sizes=(4,)))
    with_, without = (sweep.point(4, arm).cost.parameters for arm in (WITH, WITHOUT))
    assert without < with_


def test_the_sizes_of_each_kind(small):
    sizes = students_of_sizes(RecurrentConfig(), small, ())
    assert {size: student.dim for size, student in sizes.items()} == {4: 4, 8: 8}
    trees = students_of_sizes(SoftTreeConfig(), small, ())
    assert [tree.depth for tree in trees.values()] == [2, 3, 4, 5, 6, 7]
    with pytest.raises(ConfigError, match="depth is 12"):
        students_of_sizes(SoftTreeConfig(), small, (12,))


def test_a_share_keeps_rows_and_their_numbers(small):
    users = small.offsets[:-1] % 2 == 0
    users[small.info.warm_users :] = False
    part = small.with_training_users(users)
    rows = part.training_rows()
    assert set(part.user_rows()[rows]) == set(users.nonzero()[0])
    assert (part.items == small.items).all() and (part.offsets == small.offsets).all()
    assert part.fingerprint() != small.fingerprint()
    starts, stops = part.part_bounds("validation")
    assert (stops[~users] == starts[~users]).all()


def test_a_forgotten_user_leaves_nothing_in_a_sweep(copied):
    main(["sweep", "--run", str(copied), "--sizes", "4"])
    run = runs.open_run(copied)
    done = runs.forget_user(run, run_user(run))
    assert "sweep: deleted, made again when needed" in done
    assert not (copied / "sweep").exists()


def run_user(run):
    return runs.open_data(run).info.user_ids[0]


def test_a_kind_without_a_size_says_so():
    class Odd(StudentSettings, frozen=True, tag="recurrent"):
        max_history: int = 3

    from distilrec.distill.sizes import size_of

    with pytest.raises(ConfigError, match="have no dim"):
        size_of(Odd())
