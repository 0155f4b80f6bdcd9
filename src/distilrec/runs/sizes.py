"""`distilrec sweep`: students of several sizes, with and without distillation, in one run folder.

Every student is trained as `distill_student` and `train_baseline` train the one of the run, in a
folder of its own below `sweep/`; the run's own student is used where it is one of them. What is
trained and measured is kept, so that a sweep that was stopped resumes. Bundles are written to be
measured, and removed: no history of a user stays in `sweep/`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from pathlib import Path

import msgspec
import numpy as np

from distilrec.data.dataset import Dataset
from distilrec.distill.sizes import SweepConfig, resized, size_of, students_of_sizes
from distilrec.engine.recommender import load
from distilrec.errors import ConfigError, NothingToEvaluateError, TrainingError
from distilrec.export.export import export_bundle
from distilrec.files import RecordKind, write_whole
from distilrec.measure.latency import Latency, Request, measure_side_by_side
from distilrec.measure.ranking import questions
from distilrec.networks.build import StudentConfig
from distilrec.networks.student import kind_of
from distilrec.progress import Progress, Silent
from distilrec.report.sweep import (
    TEACHER_KEY,
    WITH,
    WITHOUT,
    Choice,
    Key,
    Point,
    Sweep,
    choose,
    findings,
    point_of,
)
from distilrec.report.sweep_page import section, write_sweep_report
from distilrec.runs.baseline import train_baseline
from distilrec.runs.candidates import engine_request, torch_request
from distilrec.runs.folder import Run
from distilrec.runs.measured import (
    Kept,
    cost_of,
    group_sizes,
    measured_student,
    measured_teacher,
    per_user_and_seed,
)
from distilrec.runs.places import BASELINE, STUDENT
from distilrec.runs.stages import distill_student
from distilrec.runs.teachers import train_teacher
from distilrec.teachers.teacher import Teacher
from distilrec.training.trained import TrainedModel, load_model

_REQUESTS = 1_000
# How a student is trained, and under which name it is kept
ARMS = {WITH: STUDENT, WITHOUT: BASELINE}
SWEEP = RecordKind(
    "sweep.json",
    Sweep,
    (),
    1,
    TrainingError,
    what="finished sweep",
    fix="run `distilrec sweep`",
    again="run `distilrec sweep` again",
)


@dataclass(frozen=True)
class _Cell:
    """A student that is trained with and without distillation. seed: counted from 0."""

    size: int
    share: float
    seed: int

    @property
    def name(self) -> str:
        users = "" if self.share == 1 else f"-{self.share:g}-of-users"
        return f"{self.size}{users}-seed{self.seed}"


_Students = Mapping[_Cell, Mapping[str, Kept]]


@dataclass(frozen=True)
class _Plan:
    """What a sweep trains. run: with its teacher at hand; data: by the share of the users."""

    run: Run
    dataset: Dataset
    config: SweepConfig
    students: dict[int, StudentConfig]
    data: dict[float, Dataset]

    @property
    def teacher(self) -> Teacher:
        assert self.run.own_teacher is not None
        return self.run.own_teacher

    def cells(self) -> list[_Cell]:
        """Return the students in the order in which they are trained: of each seed, all users
        first, the smallest first.
        """
        return [
            _Cell(size, share, seed)
            for seed in range(self.config.seeds)
            for share in sorted(self.data, reverse=True)
            for size in self.students
        ]

    def run_of(self, cell: _Cell, progress: Progress) -> Run:
        """Return the run of a student: the run itself for its own student."""
        run, student, baseline = self.run, self.students[cell.size], self.run.config.baseline
        if baseline.student is not None:
            baseline = msgspec.structs.replace(
                baseline, student=resized(baseline.student, cell.size)
            )
        seed = run.config.seed + cell.seed
        sweep = run.places.sweep
        labels = run.places.labels if cell.share == 1 else sweep / f"labels-{cell.share:g}-of-users"
        config = msgspec.structs.replace(
            run.config,
            student=student,
            baseline=baseline,
            seed=seed,
            teacher_seed=run.teacher_seed,
        )
        same = msgspec.structs.replace(run.config, teacher_seed=run.teacher_seed)
        return replace(
            run,
            folder=run.folder if config == same and cell.share == 1 else sweep / cell.name,
            config=config,
            progress=progress,
            labels=labels,
        )


def sweep(run: Run, dataset: Dataset, config: SweepConfig | None = None) -> Sweep:
    """Train and measure students of several sizes, with and without distillation; write
    `sweep/sweep.json`, `sweep.html`, and the section of the chosen student in `sweep.toml`.

    config: that of the run by default. What the run lacks (teacher, labels) is made first. A sweep
    that was stopped resumes.
    Raises ConfigError for sizes and shares that cannot be trained.
    """
    plan = _plan(run, dataset, config or run.config.sweep)
    with _scratch(plan.run) as scratch:
        teacher = measured_teacher(plan.teacher, dataset, run.places.sweep / "measured-teacher")
        students = _measured_students(plan, scratch)
        latencies = _latencies(plan, students, scratch)
    outcome = _together(plan, teacher, students, latencies)
    SWEEP.write(run.places.sweep, outcome)
    write_sweep_report(outcome, run.places.sweep_report)
    write_whole(run.places.sweep_section, section(outcome).encode())
    run.progress.say(f"sweep in {run.places.sweep_report}")
    return outcome


def _plan(run: Run, dataset: Dataset, config: SweepConfig) -> _Plan:
    """Return what is trained; the teacher is trained where the run has none."""
    if run.config.privacy is not None:
        raise ConfigError(
            "a sweep compares students with and without distillation, and a private student has no "
            "labels to learn from",
            fix="leave out the section [privacy]",
            parameter="privacy",
        )
    students = students_of_sizes(run.config.student, dataset, config.sizes)
    data = {share: _data_of(dataset, share, run.config.seed) for share in config.shares}
    if run.own_teacher is None:
        run = replace(run, own_teacher=train_teacher(run, dataset))
    return _Plan(run, dataset, config, students, data)


def _data_of(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Return the data set with the training rows of a share of the users, drawn at random; a larger
    share has the users of a smaller one.
    """
    if share == 1:
        return dataset
    drawn = np.random.default_rng(seed).permutation(dataset.info.warm_users)
    users = np.zeros(dataset.users, np.bool_)
    users[drawn[: math.ceil(share * len(drawn))]] = True
    part = dataset.with_training_users(users)
    try:
        questions(part, "validation")
    except NothingToEvaluateError as problem:
        raise ConfigError(
            f"a share of {share:g} of the users leaves nothing to choose the epoch by: "
            f"{problem.message}",
            fix="use a larger share",
            parameter="shares",
        ) from None
    return part


@contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """Yield a folder for bundles, empty and removed afterwards."""
    folder = run.places.sweep / "bundles"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Estimates:
    """The progress of a sweep: one bar for all epochs, and a line for each trained student."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._done, self._began = 0, time.monotonic()

    def of(self, name: str) -> Progress:
        """Return the progress of one training."""
        return _OfOne(self, name)

    def advance(self, done: int, total: int, note: str) -> None:
        steps = self._done * total + min(done, total)
        self._progress.advance("sweep", steps, self._total * total, note)

    def finished(self, name: str, trained: TrainedModel) -> None:
        """Say that a student is trained, and about how long the others will take."""
        self._done += 1
        passed = time.monotonic() - self._began
        left = timedelta(seconds=round(passed / self._done * (self._total - self._done)))
        self._progress.say(
            f"sweep: {self._done} of {self._total}: {name}, validation NDCG@10 "
            f"{trained.best_ndcg:.4f}, trained in {trained.seconds:.0f} s"
            + (f", about {left} to go" if self._done < self._total else "")
        )


class _OfOne(Silent):
    """Hear of the epochs of one training of a sweep."""

    def __init__(self, estimates: _Estimates, name: str) -> None:
        self._estimates, self._name = estimates, name

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        # Epochs come with a note; the steps of an extraction are others.
        if note:
            self._estimates.advance(done, total, f"{self._name}: {note}")


def _measured_students(plan: _Plan, scratch: Path) -> _Students:
    """Train and measure all students, until the time is up; at least one."""
    cells, students = plan.cells(), dict[_Cell, dict[str, Kept]]()
    unit, minutes = size_of(plan.run.config.student).unit, plan.config.minutes
    estimates = _Estimates(plan.run.progress, 2 * len(cells))
    until = time.monotonic() + (60 * minutes or math.inf)
    for cell in cells:
        if students and time.monotonic() > until:
            break
        students[cell] = {}
        for arm, train in ((WITH, distill_student), (WITHOUT, train_baseline)):
            users = "" if cell.share == 1 else f", {cell.share:.0%} of the users"
            name = f"{cell.size} {unit} {arm}{users}, seed {plan.run.config.seed + cell.seed}"
            trained = train(plan.run_of(cell, estimates.of(name)), plan.data[cell.share])
            estimates.finished(name, trained)
            students[cell][arm] = measured_student(
                trained,
                plan.dataset,
                plan.run.places.sweep / cell.name / f"measured-{ARMS[arm]}",
                plan.run.config.bundle,
                scratch,
            )
    return students


def _latencies(plan: _Plan, students: _Students, scratch: Path) -> dict[Key, Latency]:
    """Measure the teacher and the students of the first seed, all side by side in one run."""
    run, dataset = plan.run, plan.dataset
    share = max(cell.share for cell in students)
    requests: dict[Key, Request] = {TEACHER_KEY: torch_request(plan.teacher, dataset)}
    for cell, arm in product(students, ARMS):
        if cell.share == share and cell.seed == 0:
            folder = plan.run_of(cell, Silent()).places.model(ARMS[arm])
            trained, bundle = load_model(folder, plan.data[share]), scratch / cell.name / ARMS[arm]
            export_bundle(trained, dataset, bundle, config=run.config.bundle)
            requests[cell.size, share, arm] = engine_request(load(bundle), dataset)
    return measure_side_by_side(requests, _REQUESTS)


def _together(
    plan: _Plan, teacher: Kept, students: _Students, latencies: Mapping[Key, Latency]
) -> Sweep:
    """Return what the sweep has found, from the seeds that are whole; from the first one where none
    is.
    """
    config, student = plan.config, plan.run.config.student
    per_seed = len(plan.students) * len(plan.data)
    seeds = range(max(1, len(students) // per_seed))
    models: dict[Key, list[Kept]] = {TEACHER_KEY: [teacher]} | {
        (size, share, arm): [students[_Cell(size, share, seed)][arm] for seed in seeds]
        for size, share in sorted({(cell.size, cell.share) for cell in students})
        for arm in ARMS
    }
    measured = {key: per_user_and_seed(kept) for key, kept in models.items()}
    points = [
        point_of(key, measured[key], cost_of(kept, latencies.get(key)))
        for key, kept in models.items()
    ]
    of_teacher = measured.pop(TEACHER_KEY)
    answers = findings(of_teacher, measured, config.loss)
    return Sweep(
        dataset=plan.dataset.info.name,
        split=plan.dataset.info.split.kind,
        users=of_teacher.test.shape[1],
        kind=kind_of(student),
        unit=size_of(student).unit,
        seeds=len(seeds),
        loss=config.loss,
        missing=2 * (config.seeds * per_seed - len(students)),
        points=tuple(points),
        slice_sizes=group_sizes(plan.dataset),
        gains=answers.gains,
        replacements=answers.replacements,
        to_teacher=answers.to_teacher,
        slice_gains=answers.slice_gains,
        leads=answers.leads,
        choice=_choice(plan, points[1:]),
    )


def _choice(plan: _Plan, points: Sequence[Point]) -> Choice:
    """Return the student that validation chooses, among those of the largest share of the users."""
    share = max(point.share for point in points)
    points = [point for point in points if point.share == share]
    chosen = choose(points, plan.config.loss)
    settings = msgspec.to_builtins(plan.students[chosen.size])
    return Choice(
        chosen.size,
        chosen.arm,
        chosen.validation.mean,
        max(point.validation.mean for point in points),
        {
            name: value
            for name, value in settings.items()
            if isinstance(value, str | int | float | bool)
        },
    )
