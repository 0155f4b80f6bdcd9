"""The student without distillation: trained by itself, or beside the one with distillation by
another process.

Networks as small as these gain next to nothing from a second core, and two trainings gain nearly
all of it. A transformer as a teacher does gain from it, so it is trained alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import torch

from distilrec.data.dataset import Dataset
from distilrec.progress import Progress, Silent
from distilrec.runs.artifact import trained_once
from distilrec.runs.folder import Run, open_data, open_run
from distilrec.runs.places import BASELINE
from distilrec.training.devices import resolve_device
from distilrec.training.trained import TrainedModel, train_model
from distilrec.workers import InProcess

Result = TypeVar("Result")

# With fewer training rows the training is over before another process has begun
_LEAST_ROWS = 50_000


def train_baseline(run: Run, dataset: Dataset) -> TrainedModel:
    """Train the same student without distillation: the comparison with it shows what distillation
    adds.
    """
    config = run.config.baseline.student or run.config.student
    training = run.config.baseline.training or run.config.student_training
    make = partial(train_model, config, dataset, training, seed=run.config.seed)
    return trained_once(run, dataset, BASELINE, (config, training), make)


def with_baseline(run: Run, dataset: Dataset, make: Callable[[Run], Result]) -> Result:
    """Return make(run), and train the student without distillation at the same time; they share the
    threads of this process.

    Should the other process fail, this one goes on with the training after it has called `make`.
    """
    shared, threads = replace(run, progress=_Shared(run.progress)), torch.get_num_threads()
    torch.set_num_threads(threads - threads // 2)
    try:
        with _other_process(shared, threads // 2) as other:
            made = make(shared)
            failed = other.wait()
    finally:
        torch.set_num_threads(threads)
    if failed:
        run.progress.say(f"{BASELINE}: its process ended with {failed}; trained here")
        train_baseline(run, dataset)
    return made


def is_worth_a_process(run: Run, dataset: Dataset) -> bool:
    """Return whether `with_baseline` saves time: on a CPU with two threads or more, with a log that
    takes a while, and where no teacher that is asked during the training needs the threads.
    """
    return (
        torch.get_num_threads() >= 2
        and run.config.distillation.labels == "stored"
        and isinstance(run.workers, InProcess)
        and resolve_device(run.device).type == "cpu"
        and len(dataset.training_rows()) >= _LEAST_ROWS
    )


@contextmanager
def _other_process(run: Run, threads: int) -> Iterator[_Other]:
    """Train in another process, which is stopped where the block is left before it is done."""
    arguments = [str(run.folder), run.device, run.precision, str(threads)]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", __name__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_pass_on, args=(process.stdout, run.progress), daemon=True)
    reader.start()
    try:
        yield _Other(process, reader)
    finally:
        process.terminate()
        process.wait()
        reader.join()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


@dataclass(frozen=True)
class _Other:
    process: subprocess.Popen[bytes]
    reader: threading.Thread

    def wait(self) -> int:
        """Wait until the process has ended and all that it said is passed on; return its status."""
        self.reader.join()
        return self.process.wait()


@dataclass(frozen=True)
class _Shared:
    """The progress of two threads, one at a time."""

    of: Progress
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, line: str) -> None:
        with self.lock:
            self.of.say(line)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        with self.lock:
            self.of.advance(task, done, total, note)


class _Said(msgspec.Struct, frozen=True, tag="say"):
    line: str


class _Advanced(msgspec.Struct, frozen=True, tag="advance"):
    task: str
    done: int
    total: int
    note: str


def _pass_on(lines: IO[bytes], progress: Progress) -> None:
    """Tell a progress what the other process writes, one message a line."""
    decoder = msgspec.json.Decoder(_Said | _Advanced)
    for line in lines:
        match decoder.decode(line):
            case _Said(text):
                progress.say(text)
            case _Advanced(task, done, total, note):
                progress.advance(task, done, total, note)


class _Messages(Silent):
    """Write progress to standard output, as `_pass_on` reads it."""

    def say(self, line: str) -> None:
        self._write(_Said(line))

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        self._write(_Advanced(task, done, total, note))

    def _write(self, message: _Said | _Advanced) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()


def _end_with_parent() -> None:
    """End this process when the one that began it has ended, and its end of the pipe with it."""
    sys.stdin.buffer.read()
    os._exit(1)


def _main(folder: str, device: str, precision: str, threads: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(int(threads))
    run = open_run(Path(folder), _Messages(), device=device, precision=precision)
    train_baseline(run, open_data(run))


if __name__ == "__main__":
    _main(*sys.argv[1:])
