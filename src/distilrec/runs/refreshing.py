"""A refresh: the next generation of a run, from the last one and the rows that came since.

The log grows, teacher and student are trained further on the users with new rows and on some of the
others, and the new bundle is measured beside the one before. Where it passes the gate, it is the
one that counts from then on. Interrupted at any point, the same command goes on or begins the
generation again; what counts is replaced as the last step (`distilrec.runs.generations`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.bundle.format import read_bundle
from distilrec.bundle.manifest import Manifest
from distilrec.data.dataset import Dataset
from distilrec.data.erased import listed
from distilrec.data.order import Ties
from distilrec.errors import ConfigError, DataError, DistilrecError, FileMissingError, StorageError
from distilrec.export.export import record_metrics
from distilrec.files import key_of, locked, read_json, sync_folder, write_json, write_whole
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.measure.statistics import Difference, paired_difference
from distilrec.networks.build import student_class
from distilrec.progress import Progress
from distilrec.report.comparison import (
    EARLIER,
    STUDENT,
    TEACHER,
    BundleScorer,
    Candidate,
    Comparison,
    K,
    compare,
)
from distilrec.report.earlier import EarlierBundle
from distilrec.report.gate import Check, Thresholds
from distilrec.report.page import write_report
from distilrec.runs import erasure
from distilrec.runs.artifact import measured_stage
from distilrec.runs.candidates import student_candidate, teacher_candidate
from distilrec.runs.config import DataConfig, RefreshConfig, RunConfig
from distilrec.runs.folder import Run, open_data, open_run, read_costs
from distilrec.runs.generations import Generations
from distilrec.runs.new_rows import NewRows, find_new_rows, scratch_of
from distilrec.runs.own_source import OwnSource
from distilrec.runs.places import Places
from distilrec.runs.source import name_of, source_of, with_files
from distilrec.runs.stages import distill_student, export, prepare, record_training
from distilrec.runs.teachers import chosen_teacher, train_teacher
from distilrec.runs.upkeep import gate
from distilrec.teachers.build import EnsembleConfig, with_closed_form
from distilrec.teachers.remembering import RememberingTeacher
from distilrec.teachers.teacher import ModelTeacher, Teacher
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import Earlier
from distilrec.workers import Workers

FULL = "a full training"


class Refreshed(msgspec.Struct, frozen=True):
    """What came of a refresh. generation: its number; bundle: its folder; rows: that were new;
    known, erased: rows that were left out, because the log has them or their users were erased;
    users: how many were trained on; seconds: of the command that finished it; finished: when, in
    seconds since 1970; gain: NDCG@10 of the new bundle minus that of the one before, on the new
    test part; checks: of the gate; full: where it was asked for, NDCG@10 of the new bundle minus
    that of one that was trained from the beginning on the same data, and the seconds of that.
    """

    generation: int
    bundle: str
    model_version: str
    rows: int
    known: int
    erased: int
    users: int
    seconds: float
    finished: float
    gain: Difference
    checks: tuple[Check, ...]
    full: Difference | None = None
    full_seconds: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the new bundle is the one that counts now."""
        return all(check.passed for check in self.checks)

    def line(self) -> str:
        """Return the refresh in one line."""
        gain = self.gain.interval
        full = ""
        if self.full is not None and self.full_seconds is not None:
            whole = self.full.interval
            full = (
                f", {whole.mean:+.4f} [{whole.low:+.4f}, {whole.high:+.4f}] against {FULL}, which "
                f"took {self.full_seconds:.1f} s"
            )
        return (
            f"refresh: generation {self.generation}, "
            f"{'passed' if self.passed else 'FAILED the gate, nothing was changed'}, "
            f"{self.rows:,} new rows, {self.seconds:.1f} s, NDCG@{K} {gain.mean:+.4f} "
            f"[{gain.low:+.4f}, {gain.high:+.4f}] against {EARLIER}{full}"
        )


class _Begun(msgspec.Struct, frozen=True):
    """What a generation was begun with: one that was begun with something else is begun again."""

    key: str


def refresh(  # noqa: PLR0913 - what a refresh is made of
    folder: Path,
    log: object = None,
    *,
    thresholds: Thresholds | None = None,
    against_full: bool = False,
    settings: RefreshConfig | None = None,
    progress: Progress | None = None,
    workers: Workers | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Refreshed | None:
    """Make the next generation of a run from new rows; return what came of it, None where no row is
    new.

    log: a path, a polars frame or a pandas frame with the columns of the log of the run, or the log
    of a service (`ServiceLog`). Without it, the source of the run's log is asked for the rows since
    the newest time of the log, minus the overlap of `[refresh]`.
    thresholds: of the gate. In any case a bundle fails that is worse than the one before by more
    than chance: whose 95% interval of the difference in NDCG@10 lies below 0. against_full: train
    a student from the beginning too, to be compared with and then removed. settings: in place of
    those of the run, from this generation on.
    Raises FolderHeldError while another process works on the run, ConfigError for a run that cannot
    be refreshed, FileMissingError for one that was not finished, and the DataErrors of `prepare`.
    """
    run = open_run(folder, progress, workers, device, precision)
    with locked(folder, wait=False):
        number = Generations(folder).current()
        with _way_back(folder, number):
            before = replace(run, folder=Generations(folder).folder(number))
            config = open_run(before.folder).config
            if settings is not None:
                config = msgspec.structs.replace(config, refresh=settings)
            before = replace(before, config=config)
            return _next_generation(run, before, number, log, thresholds, against_full)


def _next_generation(
    run: Run,
    before: Run,
    number: int,
    log: object,
    thresholds: Thresholds | None,
    against_full: bool,
) -> Refreshed | None:
    """Make the generation after this one, `before`, as `refresh` does."""
    folder, began = run.folder, time.perf_counter()
    _check(before)
    dataset = open_data(before)
    target = replace(before, folder=Generations(folder).folder(number + 1))
    if log is None:
        log = _own_source(run, before.config.refresh)
    erased = [*erasure.erased_before(folder), *erasure.erased_before(before.folder)]
    with scratch_of(run.places) as scratch:
        new = find_new_rows(before, dataset, log, erased, scratch)
        _say_rows(run, new)
        if new.frame.is_empty():
            _remove_old(before, folder)
            return None
        key = key_of(number, dataset.fingerprint(), new.digest(), erased)
        _begin(target, new, number + 1, erased, key)
    try:
        refreshed = _refreshed(target, before, dataset, key, thresholds)
    except DataError as problem:
        raise new.explained(problem, target.places.log.absolute()) from None
    seconds = time.perf_counter() - began
    if against_full:
        refreshed = _beside_full(target, refreshed)
    done = msgspec.structs.replace(
        refreshed,
        rows=new.frame.height,
        known=new.known,
        erased=new.erased,
        seconds=seconds,
        finished=time.time(),
    )
    write_json(target.places.refreshed, done)
    if done.passed:
        Generations(folder).switch(number + 1)
    _remove_old(before, folder)
    run.progress.say(done.line())
    return done


@contextmanager
def _way_back(folder: Path, number: int) -> Iterator[None]:
    """Let the error of a damaged file of the generation that counts say how the one before counts
    again: no command makes a single generation again.
    """
    try:
        yield
    except DistilrecError as problem:
        generations, file = Generations(folder), problem.context.get("file")
        own = generations.folder(number).absolute()
        if (
            not number
            or isinstance(problem, StorageError)
            or file is None
            or not Path(str(file)).absolute().is_relative_to(own)
        ):
            raise
        raise type(problem)(
            problem.message,
            fix="restore it from a backup, or let the generation before count again (ln -sfn "
            f"{number - 1 or '..'} {generations.link}) and give the rows since then again",
            **problem.context,
        ) from None


def _own_source(run: Run, config: RefreshConfig) -> OwnSource:
    """Return where the log of a run came from. Raises ConfigError where the run did not keep it."""
    if not run.places.log.is_dir():
        raise ConfigError(
            f"the run {run.folder} has not kept its log, so it cannot tell which rows of its "
            "source are new",
            fix="set keep_log = true in [refresh] and run it again, or give the new rows in a file "
            "(--log)",
            parameter="refresh.keep_log",
        )
    return OwnSource(source_of(run).log, config.overlap)


def last_refresh(folder: Path) -> Refreshed | None:
    """Return what came of the last refresh of a run, passed or not; None where there was none.
    Raises DataError for a damaged record.
    """
    records = [Places(made).refreshed for made in Generations(folder).folders()]
    ended = [record for record in records if record.is_file()]
    if not ended:
        return None
    return read_json(ended[-1], Refreshed, error=DataError, fix=f"delete {ended[-1]}")


def changed_settings(run: Run, config: RunConfig) -> list[str]:
    """Return the sections, other than `[refresh]`, that differ between a run and a configuration:
    a refresh does not use them.
    """
    return [
        name
        for name in config.__struct_fields__
        if name != "refresh" and getattr(config, name) != getattr(run.config, name)
    ]


def take_back(folder: Path, number: int) -> None:
    """Let the generation before this one count again, unless another one counts by now. Its rows
    are then not a part of the log. Raises FolderHeldError.
    """
    with locked(folder, wait=False):
        if number and Generations(folder).current() == number:
            Generations(folder).switch(number - 1)


def _remove_old(run: Run, folder: Path) -> None:
    removed = Generations(folder).remove_old(run.config.refresh.keep)
    if removed:
        run.progress.say(f"old generations removed: {', '.join(map(str, removed))}")


def _check(run: Run) -> None:
    """Raise ConfigError for a run that cannot be refreshed, FileMissingError for one that was not
    finished, BundleErrors for a bundle that the new one cannot be compared with.
    """
    config = run.config
    if config.privacy is not None:
        raise ConfigError(
            "a student that was trained with differential privacy cannot be refreshed: each "
            "training further on the same users spends more of their privacy",
            fix="train the whole run again (distilrec run)",
            parameter="privacy",
        )
    if config.data.pseudonym_key is not None:
        raise ConfigError(
            "a run with pseudonyms cannot be refreshed: a refresh keeps the log with the ids",
            fix="train the whole run again (distilrec run)",
            parameter="data.pseudonym_key",
        )
    if config.refresh.earlier_weight and config.distillation.curriculum:
        raise ConfigError(
            "with curriculum the student learns from each member of the teacher, and the student "
            "of the last time cannot be one of them",
            fix="set earlier_weight = 0 in [refresh], or curriculum = false in [distillation]",
            parameter="refresh.earlier_weight",
        )
    if not (run.bundle / "manifest.json").is_file():
        raise FileMissingError(
            f"there is no bundle in {run.folder}",
            fix="finish the run first (distilrec run)",
            file=str(run.bundle),
        )
    read_bundle(run.bundle)  # a damaged one had better be known before the training


def _say_rows(run: Run, new: NewRows) -> None:
    for note in new.notes:
        run.progress.say(note)
    run.progress.say(f"{new.frame.height:,} new rows")
    for count, why in ((new.known, "the log has them"), (new.erased, "their users were erased")):
        if count:
            run.progress.say(f"{count:,} rows left out: {why}")


def _begin(target: Run, new: NewRows, number: int, erased: list[str], key: str) -> None:
    """Begin a generation, unless it was begun from the same: then it goes on."""
    places = target.places
    if places.begun.is_file():
        begun = read_json(places.begun, _Begun, error=ConfigError, fix=f"delete {target.folder}")
        if begun.key == key:
            return
    if target.folder.exists():
        shutil.rmtree(target.folder)
    target.folder.mkdir(parents=True)
    new.append(places.log, number)
    if erased:
        write_whole(places.erased_users, listed(list(dict.fromkeys(erased))))
    sync_folder(target.folder)
    write_json(places.begun, _Begun(key))


def _refreshed(
    target: Run, before: Run, was: Dataset, key: str, thresholds: Thresholds | None
) -> Refreshed:
    """Return what came of the training and the measurement of a generation that was begun."""
    run, dataset = prepare(
        _config(before, was, target),
        target.folder,
        target.progress,
        target.workers,
        target.device,
        target.precision,
    )
    run = replace(run, config=_shortened(run.config))
    trained_from = rows_trained_from(was, dataset, run.config.refresh, run.config.seed)
    users = trained_from < dataset.train_end
    run.progress.say(
        f"{int(users.sum()):,} of {dataset.info.warm_users:,} users are trained on, with "
        f"{int((dataset.train_end - trained_from).sum()):,} of "
        f"{int((dataset.train_end - dataset.offsets[:-1]).sum()):,} training rows"
    )
    refit = run.config.refresh.refit
    earlier = Earlier(before.places.teacher, was.info, trained_from, key, refit)
    teacher = train_teacher(run, dataset, earlier)
    replayed = users & ~changed_users(was, dataset)
    student = replace(earlier, folder=before.places.student)
    _train_student(run, dataset, student, before.config, teacher, replayed)
    export(run, dataset, measured_next=True)
    comparison, version = _measure(run, dataset, teacher, before.bundle)
    gain = next(d for d in comparison.differences if d.b == EARLIER and d.metric == f"ndcg@{K}")
    checks = [Check(f"refresh ndcg@{K}, upper end", gain.interval.high, 0.0, at_least=True)]
    if thresholds is not None:
        checks += gate(run, dataset, thresholds)
    return Refreshed(
        generation=int(target.folder.name),
        bundle=str(run.bundle),
        model_version=version,
        rows=0,
        known=0,
        erased=0,
        users=int(users.sum()),
        seconds=0.0,
        finished=0.0,
        gain=gain,
        checks=tuple(checks),
    )


def _train_student(
    run: Run,
    dataset: Dataset,
    earlier: Earlier,
    whole: RunConfig,
    teacher: Teacher,
    replayed: NDArray[np.bool_],
) -> None:
    """Train the student further; one whose weights cannot be taken over is trained as a whole.

    whole: the configuration of a whole training; replayed: (users,), who has no new training rows.
    """
    if student_class(run.config.student).grows:
        if weight := run.config.refresh.earlier_weight:
            before = ModelTeacher(earlier.carried(dataset))
            run = replace(run, own_teacher=RememberingTeacher(teacher, before, weight, replayed))
        distill_student(run, dataset, earlier.start(dataset))
        return
    run.progress.say(
        "student: its weights cannot be taken over to other items, so it is trained as a whole"
    )
    training = whole.student_training
    distill_student(
        replace(run, config=msgspec.structs.replace(run.config, student_training=training)), dataset
    )


def rows_trained_from(
    was: Dataset, now: Dataset, config: RefreshConfig, seed: int
) -> NDArray[np.int64]:
    """Return the row of each user before which a refresh trains none, (users,): the newest rows, as
    many as the user has more of than before, and all rows of a drawn share of the users. All rows
    are trained of a user with fewer than before, and where a log has no order.
    """
    first, end = now.offsets[:-1], now.train_end
    added = end - first - _earlier_rows(was, now)
    newest = np.where((added < 0) | (now.info.order == "none") & (added > 0), first, end - added)
    drawn = np.random.default_rng([seed, len(now.items)]).random(now.users) < config.replay
    trained_from = np.where(drawn, first, newest)
    return trained_from if (trained_from < end).any() else first


def changed_users(was: Dataset, now: Dataset) -> NDArray[np.bool_]:
    """Return which users have other training rows than before, (users,)."""
    changed: NDArray[np.bool_] = _earlier_rows(was, now) != now.train_end - now.offsets[:-1]
    return changed


def _earlier_rows(was: Dataset, now: Dataset) -> NDArray[np.int64]:
    """Return how many training rows each of the users now had before, (users,)."""
    rows = dict(zip(was.info.user_ids, was.train_end - was.offsets[:-1], strict=True))
    return np.array([rows.get(user, 0) for user in now.info.user_ids], np.int64)


def _config(before: Run, was: Dataset, target: Run) -> RunConfig:
    """Return the configuration of a generation, whose log is a folder of its own, and whose
    teacher, with its members in closed form, and order of events are those of the one before, also
    where the log has got its first repeat or the catalogue has outgrown a default.
    """
    teacher, training = chosen_teacher(before.config, was.info)
    teacher = with_closed_form(teacher, before.config.closed_form, was.info.warm_items)
    data = with_files(before.config.data)
    data = msgspec.structs.replace(
        data,
        interactions=str(target.places.log.absolute()),
        columns=None,
        name=name_of(data),
        order="none" if was.info.order == "none" else "time",
        ties=_ties_of(data, was),
        erased_users_must_exist=False,
    )
    return msgspec.structs.replace(
        before.config,
        data=data,
        teacher=teacher,
        closed_form=False,
        teacher_training=training,
    )


def _ties_of(data: DataConfig, was: Dataset) -> Ties:
    """Return the order of events at the same time that a data set was prepared with."""
    if data.ties != "auto":
        return data.ties
    return "unordered" if was.info.order == "ties" else "rows"


def _shortened(config: RunConfig) -> RunConfig:
    """Return a configuration whose trainings are as short as a refresh, and whose labels are of one
    order of the histories.
    """
    how, teacher, training = config.refresh, config.teacher, config.teacher_training

    def short(whole: TrainingConfig, epochs: int) -> TrainingConfig:
        rate = min(whole.learning_rate * how.learning_rate, whole.learning_rate)
        return msgspec.structs.replace(whole, epochs=min(whole.epochs, epochs), learning_rate=rate)

    if isinstance(teacher, EnsembleConfig):
        members = [
            msgspec.structs.replace(
                member, training=member.training and short(member.training, how.teacher_epochs)
            )
            for member in teacher.members
        ]
        teacher = EnsembleConfig(tuple(members))
    return msgspec.structs.replace(
        config,
        teacher=teacher,
        labels=msgspec.structs.replace(config.labels, orders=1),
        teacher_training=training and short(training, how.teacher_epochs),
        student_training=short(config.student_training, how.epochs),
    )


def _measure(run: Run, dataset: Dataset, teacher: Teacher, before: Path) -> tuple[Comparison, str]:
    """Compare teacher, student and the bundle before on the new test part; write comparison, report
    and the metrics of the bundle. Return the comparison and the version of the model.
    """
    with measured_stage(run, "evaluate"):
        candidates = [
            teacher_candidate(TEACHER, teacher, dataset),
            student_candidate(dataset, STUDENT, run.places.student, run.bundle),
            Candidate(EARLIER, (EarlierBundle(before, dataset),), logits=False),
        ]
        comparison = compare(dataset, candidates)
    metrics = {name: value.mean for name, value in comparison.row(STUDENT).quality.items()}

    def record(manifest: Manifest) -> None:
        record_training(run, dataset, manifest)

    manifest = record_metrics(run.bundle, metrics, record)
    comparison = msgspec.structs.replace(comparison, costs=read_costs(run.folder))
    write_json(run.places.comparison, comparison)
    write_report(comparison, run.places.report)
    return comparison, manifest.model_version


def _beside_full(run: Run, refreshed: Refreshed) -> Refreshed:
    """Return a refresh with what a full training on the same data gives, which is then removed."""
    run = replace(run, config=open_run(run.folder).config)
    dataset = open_data(run)
    full, began = replace(run, folder=run.places.full), time.perf_counter()
    train_teacher(full, dataset)
    distill_student(full, dataset)
    export(full, dataset)
    seconds, asked = time.perf_counter() - began, questions(dataset, "test")
    values = [
        ndcg(rank(BundleScorer(bundle, dataset), asked, K), K)[None]
        for bundle in (run.bundle, full.bundle)
    ]
    difference = paired_difference(f"ndcg@{K}", STUDENT, values[0], FULL, values[1])
    shutil.rmtree(full.folder)
    return msgspec.structs.replace(refreshed, full=difference, full_seconds=seconds)
