"""The student without distillation, trained beside the one with distillation by another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distilrec.errors import InvalidValueError
from distilrec.runs import (
    baseline,
    open_data,
    open_run,
    prepare,
    read_costs,
    stages,
    train_students,
    train_teacher,
)
from distilrec.runs.baseline import train_baseline, with_baseline
from distilrec.training.trained import load_model
from tests.small_run import Said, small_config, write_tables

pytestmark = pytest.mark.slow


def children(process: int) -> list[Path]:
    """The processes that a process has begun, as folders that are there while they run."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [Path("/proc") / child for child in found]


@pytest.fixture
def two_threads(monkeypatch):
    """Lets a small log have another process; both get one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(baseline, "_LEAST_ROWS", 0)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture
def begun(tmp_path):
    """A prepared run that remembers what it says."""
    write_tables(tmp_path)
    return prepare(small_config(tmp_path), tmp_path / "run", Said())


def test_both_are_trained_at_the_same_time(begun, two_threads, monkeypatch):
    run, dataset = begun
    train_teacher(run, dataset)
    beside, distill = [], stages.distill_student

    def seen(shared, dataset):
        beside.extend(children(os.getpid()))
        return distill(shared, dataset)

    monkeypatch.setattr(stages, "distill_student", seen)
    made = train_students(run, dataset)
    assert len(beside) == 1
    assert not beside[0].exists()
    assert made.seconds > 0
    assert {cost.stage for cost in read_costs(run.folder)} >= {"teacher", "student", "baseline"}
    lines = [line for line in run.progress.lines if line.startswith("baseline: recurrent")]
    assert len(lines) == 1
    # A few users tell nothing apart: each rival is named, and each once
    warned = [line for line in run.progress.lines if line.startswith("There is little to distil")]
    assert len(warned) == len(set(warned)) > 1
    assert sum("without distillation" in line for line in warned) == 1
    assert sum(line.startswith("What would help") for line in run.progress.lines) == 1

    # The same bits as one thread gives in one process
    folder = run.places.baseline.rename(run.folder / "beside")
    torch.set_num_threads(1)
    here = train_baseline(run, dataset)
    torch.set_num_threads(2)
    assert load_model(folder, dataset).record.curve[-1].loss == here.record.curve[-1].loss


def test_a_process_that_fails_costs_no_training(begun, two_threads, monkeypatch):
    run, dataset = begun
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with_baseline(run, dataset, lambda shared: None)
    assert load_model(run.places.baseline, dataset).best_ndcg > 0
    assert any("its process ended with 1; trained here" in line for line in run.progress.lines)


def test_an_error_of_the_teacher_ends_the_other_training(begun, two_threads):
    run, dataset = begun
    beside = []

    def fail(shared):
        beside.extend(children(os.getpid()))
        raise InvalidValueError("no", fix="yes")

    with pytest.raises(InvalidValueError, match="no"):
        with_baseline(run, dataset, fail)
    assert beside
    assert not any(process.exists() for process in beside)


@pytest.mark.parametrize("why", ["one thread", "few rows"])
def test_where_another_process_is_not_worth_it(begun, why):
    run, dataset = begun
    before = torch.get_num_threads()
    torch.set_num_threads(1 if why == "one thread" else 2)
    assert not baseline.is_worth_a_process(run, dataset)
    torch.set_num_threads(before)


_PARENT = """
import sys, time
from pathlib import Path
import torch
from distilrec.runs import baseline, open_data, open_run
torch.set_num_threads(2)
baseline._LEAST_ROWS = 0
run = open_run(Path(sys.argv[1]))
baseline.with_baseline(run, open_data(run), lambda shared: (print("begun", flush=True), time.sleep(60)))
"""


def test_it_does_not_outlive_the_process_that_began_it(begun):
    run, _ = begun
    command = [sys.executable, "-c", _PARENT, str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"begun\n"
        [child] = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    ends = time.monotonic() + 60
    while child.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    assert not child.exists()

    # What it has trained so far is used again
    again = open_run(Path(run.folder), Said())
    assert train_baseline(again, open_data(again)).best_ndcg > 0
