"""The whole line, stage by stage, in one run folder. Every stage reads what the one before wrote.

runs/ml-100k/
config.json       all choices of the run
data/             the prepared data set
teacher/          the trained teacher        checkpoints/   unfinished trainings (resumed, then removed)
labels/           its soft and hard labels (of each member of an ensemble, for a curriculum)
student/          the distilled student      alone/         the same student without distillation
bundle/           what is served             bundle-alone/  the same, of the student without distillation
seen/             which users each exported model was trained on (`distilrec seen`)
erased-users.txt  whom `prepare` leaves out from now on (`distilrec forget`); unfinished-erasure.json is there meanwhile
costs.json        time and memory of each stage
comparison.json   report.html
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import msgspec
import numpy as np
import polars as pl

from distilrec import erasure
from distilrec.bundle.export import export_bundle, holds, record_metrics
from distilrec.bundle.manifest import CATALOGUE, WEIGHTS, Manifest
from distilrec.config import DataConfig, RunConfig
from distilrec.data.cleaning import clean_log
from distilrec.data.dataset import PREPARED, Dataset, load_dataset
from distilrec.data.erased import ErasedUsers, read_erased_users
from distilrec.data.fetch import DATASETS, fetch
from distilrec.data.preparation import prepare_dataset
from distilrec.data.pseudonyms import pseudonym, pseudonym_key
from distilrec.data.readers import open_log
from distilrec.distill.distillation import distil
from distilrec.distill.tuning import Choice, tune
from distilrec.engine.recommender import Recommender, load
from distilrec.errors import BundleError, ConfigError, DataError, FileMissingError
from distilrec.evaluate.baselines import fitted_baselines
from distilrec.evaluate.comparison import (
    ALONE,
    MEMBER,
    STUDENT,
    TEACHER,
    BundleScorer,
    Candidate,
    Comparison,
    K,
    StageCost,
    compare,
    quality_of,
)
from distilrec.evaluate.drift import Drift, drift
from distilrec.evaluate.gate import Check, Thresholds, check
from distilrec.evaluate.latency import Latency, measure
from distilrec.evaluate.ranking import Scorer, questions, rank
from distilrec.evaluate.report import write_report
from distilrec.evaluate.statistics import paired_difference
from distilrec.files import key_of, read_json, write_json, write_whole
from distilrec.ids import as_id
from distilrec.knowledge.extract import extract_labels
from distilrec.knowledge.store import LabelStore
from distilrec.models import SAVED, ModelConfig, TrainedModel, load_model, save_model, train_model
from distilrec.seen import record_users
from distilrec.students.soft_tree import SoftTree, TreeNode, describe_tree
from distilrec.teachers.build import EnsembleConfig, TeacherConfig, load_teacher, make_teacher, single_teachers
from distilrec.teachers.ensemble import EnsembleTeacher
from distilrec.teachers.external import UserScores
from distilrec.teachers.teacher import ModelTeacher, Teacher
from distilrec.training.batches import prediction_batch
from distilrec.training.memory import peak_memory, reset_peak_memory
from distilrec.training.trainer import Epoch, TrainingConfig, drop_checkpoint
from distilrec.training.validation import validation_ndcg
from distilrec.workers import InProcess, Workers

_ENGINE_REQUESTS, _TORCH_REQUESTS = 2_000, 100


class Progress(Protocol):
    """Who wants to know how far a run is; `cli` shows it as progress bars."""

    def say(self, line: str) -> None:
        """A finding worth a line."""
        ...

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of a task are finished."""
        ...


class Silent:
    """Nobody."""

    def say(self, line: str) -> None:
        pass

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        pass


class Lines(Silent):
    """Somebody who reads a log file: only the findings, one a line."""

    def say(self, line: str) -> None:
        print(line, flush=True)  # noqa: T201


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration. own_teacher: given from Python, takes the place of the configured one;
    workers: who works on what can be cut into shards.
    """

    folder: Path
    config: RunConfig
    progress: Progress
    own_teacher: Teacher | None = None
    workers: Workers = field(default_factory=InProcess)

    @property
    def teacher_seed(self) -> int:
        seed = self.config.teacher_seed
        return self.config.seed if seed is None else seed

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def bundle_alone(self) -> Path:
        return self.folder / "bundle-alone"


def open_run(folder: Path, progress: Progress | None = None, workers: Workers | None = None) -> Run:
    """A run that `prepare` began. Raises FileMissingError and ConfigError."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileMissingError(
            f"{folder} is no run folder (no config.json)",
            fix="check the path; `distilrec prepare` begins a run",
            file=str(path),
        )
    config = read_json(path, RunConfig, error=ConfigError, fix="begin again with `distilrec prepare`")
    return Run(folder, config, progress or Silent(), workers=workers or InProcess())


def open_data(run: Run) -> Dataset:
    """Returns the prepared data of a run, after finishing an erasure that was interrupted.

    Raises FileMissingError and DataError, also where `prepare` was interrupted between the data and the configuration.
    """
    for line in erasure.finish(run.folder):
        run.progress.say(f"finishing an erasure that was interrupted: {line}")
    dataset = load_dataset(run.folder / "data")
    if PREPARED.made_from(run.folder / "data") not in ("", _choices(run.config)):
        raise DataError(
            f"the data in {run.folder / 'data'} were prepared with other choices than those in config.json",
            fix="run `distilrec prepare` again, which was interrupted",
            file=str(run.folder / "data"),
        )
    return dataset


def _choices(config: RunConfig) -> str:
    """Returns a key of the choices that a preparation depends on, without the paths of the files, which may be moved."""
    paths = {"interactions", "users", "items", "erased_users", "erased_users_must_exist"}
    data = {name: value for name, value in msgspec.structs.asdict(config.data).items() if name not in paths}
    return key_of(data, config.cleaning, config.split)


def run_all(
    config: RunConfig,
    folder: Path,
    progress: Progress | None = None,
    teacher: Callable[[Dataset], Teacher] | None = None,
    workers: Workers | None = None,
) -> Comparison:
    """Log -> data -> teacher -> labels -> student -> bundle -> comparison and report.

    teacher: makes your own teacher for the prepared data (`distilrec.teachers.external`, `distilrec.teachers.adapters`), in
    place of the configured one. workers: such as `distilrec.scale.ray_workers.RayWorkers`.
    """
    run, dataset = prepare(config, folder, progress, workers)
    if teacher is None:
        train_teacher(run, dataset)
    else:
        run = replace(run, own_teacher=teacher(dataset))
    distil_student(run, dataset)
    train_alone(run, dataset)
    export(run, dataset, measured_next=True)
    return evaluate(run, dataset)


def prepare(
    config: RunConfig, folder: Path, progress: Progress | None = None, workers: Workers | None = None
) -> tuple[Run, Dataset]:
    """Reads, cleans, splits and encodes the data, and begins the run folder."""
    run = Run(folder, config, progress or Silent(), workers=workers or InProcess())
    data, say = config.data, run.progress.say
    prepared = partial(
        prepare_dataset,
        cleaning=config.cleaning,
        split=config.split,
        workers=run.workers,
        scratch=folder / "data" / "parts",
        on_step=run.progress.advance,
        pseudonym_key=_key(data),
        derived_features=data.derived_features,
        checks=data.checks,
        erased_users=_erased_users(data, folder),
    )
    source = None if data.dataset is None else fetch(data.dataset, say)
    with _measured(run, "prepare"):
        if source is not None:
            assert data.dataset is not None
            dataset = prepared(
                source / "interactions.csv",
                DATASETS[data.dataset].schema,
                users=source / "users.csv",
                items=source / "items.csv",
                name=data.dataset,
            )
        else:
            assert data.interactions is not None
            dataset = prepared(
                data.interactions,
                data.schema,
                users=data.users,
                items=data.items,
                name=data.name or Path(data.interactions).stem,
                columns=data.columns,
                user_columns=data.user_columns,
                item_columns=data.item_columns,
                text=data.text(),
                user_text=data.user_format,
                item_text=data.item_format,
            )
    questions(dataset, "validation")  # a run that cannot be evaluated had better fail now than after the training
    questions(dataset, "test")
    dataset.save(folder / "data", _choices(config))
    write_json(folder / "config.json", config)
    for line in erasure.finish(folder):
        say(f"finishing an erasure that was interrupted: {line}")
    for line in (*dataset.info.cleaning_report.lines(), *dataset.info.notes):
        say(line)
    say(
        f"{dataset.users:,} users, {dataset.catalogue_size:,} items, {int(dataset.is_training().sum()):,} training rows, "
        f"split {config.split.kind}"
    )
    cost = next(cost for cost in read_costs(folder) if cost.stage == "prepare")
    say(f"prepared in {cost.seconds:.1f} s, peak memory {cost.peak_bytes / 2**20:,.0f} MiB")
    return run, dataset


def _key(data: DataConfig) -> bytes | None:
    """The key of the pseudonyms, where the configuration asks for them. Raises ConfigError."""
    return None if data.pseudonym_key is None else pseudonym_key(data.pseudonym_key)


def _erased_users(data: DataConfig, folder: Path) -> ErasedUsers:
    """Returns the users in the file of erased users, and those that were erased from this run. Raises DataError."""
    before = tuple(erasure.erased_before(folder))
    if data.erased_users is None:
        return ErasedUsers(others=before)
    named = read_erased_users(Path(data.erased_users))
    if data.erased_users_must_exist:
        return ErasedUsers(tuple(user for user in named if user not in before), before, data.erased_users)
    return ErasedUsers((), (*named, *before), data.erased_users)


def train_teacher(run: Run, dataset: Dataset) -> Teacher:
    """The teacher, trained on the ground truth, or yours."""
    folder = run.folder / "teacher"
    with _measured(run, "teacher") as stage:
        before = _training_stamps(folder)
        teacher = make_teacher(
            run.config.teacher,
            dataset,
            run.config.teacher_training,
            folder,
            seed=run.teacher_seed,
            checkpoint=(run.folder / "checkpoints" / "teacher").absolute(),
            workers=run.workers,
            on_epoch=lambda name, epoch, total: run.progress.advance(name, epoch.epoch, total, _epoch_note(epoch)),
        )
        stage.reused = before != {} and before == _training_stamps(folder)
    if isinstance(teacher, UserScores):
        for note in teacher.notes:
            run.progress.say(note)
    if isinstance(teacher, EnsembleTeacher):
        for member, weight in zip(run.config.teacher.members, teacher.weights, strict=True):  # type: ignore[union-attr]
            run.progress.say(f"teacher: member {member.model.__struct_config__.tag} has the weight {weight:.3f}")
    parameters = "" if teacher.cost.parameters is None else f", {teacher.cost.parameters:,} parameters"
    run.progress.say(
        f"teacher: {run.config.teacher.__struct_config__.tag}{parameters}, "
        f"validation NDCG@10 {validation_ndcg(teacher, dataset):.4f}"
        + ("" if teacher.cost.seconds is None else f", trained in {teacher.cost.seconds:.0f} s")
        + (", already trained" if stage.reused else "")
    )
    return teacher


def _teacher(run: Run, dataset: Dataset) -> Teacher:
    if run.own_teacher is not None:
        return run.own_teacher
    return load_teacher(run.config.teacher, run.folder / "teacher", dataset)


def _training_stamps(folder: Path) -> dict[str, int]:
    """Returns when the models in a folder were trained."""
    records = [*folder.rglob("model.json"), *folder.rglob("linear.json")]
    return {str(path): path.stat().st_mtime_ns for path in records}


def distil_student(run: Run, dataset: Dataset) -> TrainedModel:
    """The labels of the teacher, and the student that learns from them; a private one learns from the log alone."""
    config, training, distillation = run.config.student, run.config.student_training, run.config.distillation
    if run.config.privacy is not None:
        from distilrec.distill.private import train_private  # Opacus is an extra of its own

        private = partial(train_private, config, dataset, run.config.privacy, seed=run.config.seed)
        trained = _once(
            run,
            dataset,
            "student",
            (config, run.config.privacy),
            lambda checkpoint, on_epoch: private(on_epoch=on_epoch),
        )
        run.progress.say(f"student: differentially private, {trained.record.privacy}; no labels of the teacher")
        return trained
    stores = teacher_labels(run, dataset)
    return _once(
        run,
        dataset,
        "student",
        (config, training, distillation, [each.manifest for each in stores]),
        partial(distil, config, dataset, stores, training, distillation, seed=run.config.seed),
    )


def teacher_labels(run: Run, dataset: Dataset) -> list[LabelStore]:
    """The labels of the teacher; those of each member of an ensemble for a curriculum."""
    teacher = _teacher(run, dataset)
    folder = run.folder / "labels"
    sources = {folder: teacher}
    if run.config.distillation.curriculum:
        sources = {folder / f"member-{n}": member for n, member in enumerate(single_teachers(teacher))}
    stores = []
    with _measured(run, "labels") as stage:
        stage.reused = all((place / "manifest.json").is_file() for place in sources)
        for place, source in sources.items():
            stores.append(
                extract_labels(
                    source,
                    dataset,
                    place,
                    run.config.labels,
                    seed=run.teacher_seed,
                    mask_seen=run.config.student_training.mask_seen,
                    on_shard=lambda done, total: run.progress.advance("labels", done, total),
                    workers=run.workers,
                )
            )
    for store in stores:
        made = store.extraction
        run.progress.say(
            f"labels: {made.labels:,} for {made.events:,} training events, {made.bytes / 1e6:.1f} MB on disk, "
            f"{made.seconds:.0f} s"
        )
    return stores


def train_alone(run: Run, dataset: Dataset) -> TrainedModel:
    """The same student without distillation: the comparison that shows what the teacher was good for."""
    return _on_ground_truth(run, dataset, "alone", run.config.student, run.config.student_training)


def _on_ground_truth(
    run: Run, dataset: Dataset, name: str, config: ModelConfig, training: TrainingConfig
) -> TrainedModel:
    make = partial(train_model, config, dataset, training, seed=run.config.seed)
    return _once(run, dataset, name, (config, training), make)


def export(run: Run, dataset: Dataset, *, measured_next: bool = False) -> Manifest:
    """Writes the bundle of the distilled student, and of the one without distillation where it has been trained.

    measured_next: `evaluate` follows, which writes its metrics into the bundle and says under which version.
    """
    teacher = _teacher(run, dataset)
    student = load_model(run.folder / "student", dataset)
    told = teacher if run.config.privacy is None else None  # what the teacher would recommend is not private
    record = partial(_record, run, dataset)
    manifest = export_bundle(student, dataset, run.bundle, teacher=told, config=run.config.bundle, before=record)
    if (run.folder / "alone" / "model.json").is_file():
        alone = load_model(run.folder / "alone", dataset)
        export_bundle(alone, dataset, run.bundle_alone, config=run.config.bundle, before=record)
    search = manifest.search
    run.progress.say(
        f"bundle in {run.bundle}: "
        + ("" if measured_next else f"model {manifest.model_version}, ")
        + f"{model_bytes(manifest):,} bytes of model"
        + (f", {search.kind} search with recall@10 {search.recall:.4f}" if search.kind != "exact" else "")
    )
    return manifest


def _record(run: Run, dataset: Dataset, manifest: Manifest) -> None:
    """Records who was in the training of a model, for `distilrec seen`, before the model is there to be used.

    Its metrics are a part of its version: what is exported and what was measured are two versions of the same model.
    """
    record_users(
        run.folder,
        dataset.info.user_ids[: dataset.info.warm_users],
        model_version=manifest.model_version,
        dataset=manifest.dataset,
        dataset_fingerprint=manifest.dataset_fingerprint,
        teacher=manifest.teacher,
        private=manifest.privacy is not None,
    )


def forget_user(run: Run, user_id: object, *, missing_ok: bool = False) -> list[str]:
    """Takes a user out of a run: out of the data, the labels and the histories of the bundles; returns what was done.

    user_id: the id or the pseudonym; with pseudonyms, an id needs their key. The user is put on the list of those that
    `prepare` leaves out of this run from now on. Labels, unfinished trainings and scores of a teacher go as a whole, they
    are made again when they are needed. Weights stay as they are until they are trained again. Where this is killed, the
    next command on this run finishes the work.
    Raises InvalidIdError, and UnknownUserError for a user of whom this run knows nothing, unless `missing_ok` is set.
    """
    names, key = [as_id(user_id, "user_id")], run.config.data.pseudonym_key
    if key is not None and key in os.environ:
        names.append(pseudonym(names[0], pseudonym_key(key)))
    return erasure.forget(run.folder, names, missing_ok=missing_ok)


def evaluate(run: Run, dataset: Dataset) -> Comparison:
    """The comparison on the test part, `comparison.json`, `report.html`, and the metrics in the bundle's manifest."""
    teacher = _teacher(run, dataset)
    candidates = [
        *teacher_candidates(run.config.teacher if run.own_teacher is None else None, teacher, dataset),
        student_candidate(run, dataset, STUDENT, "student", run.bundle),
    ]
    if run.bundle_alone.is_dir():
        candidates.append(student_candidate(run, dataset, ALONE, "alone", run.bundle_alone))
    candidates += [Candidate(name, (scorer,), logits=False) for name, scorer in fitted_baselines(dataset).items()]
    done = iter(range(len(candidates)))
    comparison = compare(
        dataset,
        candidates,
        lambda name: run.progress.advance("evaluate", next(done), len(candidates), name),
        teacher.item_vectors() if isinstance(teacher, ModelTeacher) else None,
    )
    metrics = {name: value.mean for name, value in comparison.row(STUDENT).quality.items()}
    manifest = record_metrics(run.bundle, metrics, partial(_record, run, dataset))
    costs, tree = read_costs(run.folder), _tree(run, dataset)
    comparison = msgspec.structs.replace(comparison, costs=costs, tree=tree, privacy=manifest.privacy)
    run.progress.advance("evaluate", len(candidates), len(candidates))
    write_json(run.folder / "comparison.json", comparison)
    write_report(comparison, run.folder / "report.html")
    run.progress.say(f"bundle in {run.bundle}: model {manifest.model_version}, with the metrics just measured")
    run.progress.say(f"report in {run.folder / 'report.html'}")
    return comparison


def gate(run: Run, dataset: Dataset, thresholds: Thresholds) -> list[Check]:
    """Measures the exported bundle anew, on the test part, against thresholds.

    The teacher's figures are those of the last `evaluate`. Raises ConfigError for a threshold that cannot be measured.
    """
    asked = questions(dataset, "test")
    quality = quality_of(rank(BundleScorer(run.bundle, dataset), asked, K))
    measured: dict[str, dict[str, float]] = {
        "quality": {name: float(values.mean()) for name, values in quality.items()},
        "retention": {},
        "improvement": {},
        "latency": {},
        "size": {},
    }
    path = run.folder / "comparison.json"
    if path.is_file():
        comparison = read_json(path, Comparison, error=ConfigError, fix="run `distilrec evaluate` again")
        of_teacher = comparison.row(TEACHER).quality
        measured["retention"] = {
            name: value / of_teacher[name].mean
            for name, value in measured["quality"].items()
            if name in of_teacher and of_teacher[name].mean > 0
        }
    if thresholds.improvement and run.bundle_alone.is_dir():
        alone = quality_of(rank(BundleScorer(run.bundle_alone, dataset), asked, K))
        measured["improvement"] = {
            name: paired_difference(name, STUDENT, values[None], ALONE, alone[name][None]).interval.low
            for name, values in quality.items()
        }
    recommender = load(run.bundle)
    if thresholds.latency:
        latency = engine_latency(recommender, dataset)
        measured["latency"] = {"p50": latency.p50, "p99": latency.p99}
    manifest = recommender.manifest
    measured["size"] = {"parameters": manifest.parameters, "bytes": model_bytes(manifest)}
    return check(thresholds, measured)


def check_drift(run: Run, dataset: Dataset, log: Path, *, stability: float, unknown: float) -> list[Drift]:
    """Cleans events of today like the training log, and compares them with it. Raises what `clean_log` raises."""
    data = run.config.data
    schema = DATASETS[data.dataset].schema if data.dataset is not None else data.schema
    with TemporaryDirectory(prefix="distilrec-") as scratch:
        opened = open_log(log, Path(scratch), data.columns, data.text())
        cleaning = msgspec.structs.replace(run.config.cleaning, min_user_events=0, min_item_events=0)
        clean = clean_log(opened, schema, cleaning, Path(scratch), pseudonym_key=_key(data), checks=data.checks)
        live = pl.concat([clean.part(number) for number in range(len(clean.parts))])
    for line in clean.report.lines():
        run.progress.say(line)
    return drift(dataset, live, stability=stability, unknown=unknown)


def tune_student(run: Run, dataset: Dataset, *, trials: int, minutes: float) -> Choice:
    """A search for the student's hyper-parameters on the labels of the run; writes `tuned.toml`."""
    stores = teacher_labels(run, dataset)
    chosen = tune(
        run.config.student,
        dataset,
        stores,
        run.config.student_training,
        run.config.distillation,
        run.folder / "tuning",
        seed=run.config.seed,
        trials=trials,
        minutes=minutes,
        on_trial=lambda trial, value, best: run.progress.advance(
            "tune", min(trial, trials), trials, f"{value:.4f}, best validation NDCG@10 {best:.4f}"
        ),
    )
    path = run.folder / "tuned.toml"
    write_whole(path, chosen.toml().encode())
    run.progress.say(f"best validation NDCG@10 {chosen.validation_ndcg:.4f} in trial {chosen.trial}: see {path}")
    return chosen


def _tree(run: Run, dataset: Dataset) -> TreeNode | None:
    """The student in words, where it is a tree; the shares are those of all users after their training history."""
    student = load_model(run.folder / "student", dataset).model
    if not isinstance(student, SoftTree):
        return None
    everyone = np.arange(dataset.info.warm_users)
    histories = dataset.histories(everyone, dataset.train_end[everyone])
    return describe_tree(student, dataset, prediction_batch(histories, dataset.catalogue_size, student.max_history))


def teacher_candidates(config: TeacherConfig | None, teacher: Teacher, dataset: Dataset) -> list[Candidate]:
    """The teacher with what it costs through torch, and the members of an ensemble, each by itself."""
    found = [_teacher_candidate(TEACHER, teacher, dataset)]
    if isinstance(config, EnsembleConfig):
        for number, (member, of_member) in enumerate(
            zip(config.members, single_teachers(teacher), strict=True), start=1
        ):
            name = f"{MEMBER} {number}: {member.model.__struct_config__.tag}"
            found.append(_teacher_candidate(name, of_member, dataset))
    return found


def _teacher_candidate(name: str, teacher: Teacher, dataset: Dataset) -> Candidate:
    parameters = teacher.cost.parameters
    return Candidate(
        name,
        (teacher,),
        parameters,
        None if parameters is None else 4 * parameters,
        teacher.cost.seconds,
        torch_latency(teacher, dataset),
        teacher.cost.curve,
    )


def student_candidate(run: Run, dataset: Dataset, name: str, folder: str, bundle: Path) -> Candidate:
    """A student as its bundle serves it."""
    trained = load_model(run.folder / folder, dataset)
    if not holds(bundle, trained):
        raise BundleError(
            f"the bundle in {bundle} is not of the model in {run.folder / folder}",
            fix="export it again (distilrec export)",
            file=str(bundle),
        )
    recommender = load(bundle)
    return Candidate(
        name,
        (BundleScorer(bundle, dataset),),
        trained.model.parameter_count(),
        model_bytes(recommender.manifest),
        trained.seconds,
        engine_latency(recommender, dataset),
        trained.record.curve,
    )


def model_bytes(manifest: Manifest) -> int:
    """Bytes of the model in a bundle: weights and catalogue. The users' history is data, not model."""
    return manifest.files[WEIGHTS].bytes + manifest.files[CATALOGUE].bytes


def engine_latency(recommender: Recommender, dataset: Dataset) -> Latency:
    """Of `Recommender.recommend`, top 10, for users with their whole history in the state."""
    users = dataset.info.user_ids[: dataset.info.warm_users]
    for user in users:
        recommender.recommend(user)
    return measure(lambda n: recommender.recommend(users[n % len(users)]), _ENGINE_REQUESTS)


def torch_latency(scorer: Scorer, dataset: Dataset) -> Latency:
    """Of the same answer through torch: the history in, the ten best unseen items out, one user at a time."""
    everyone = np.arange(dataset.info.warm_users)
    histories = dataset.histories(everyone, dataset.offsets[1 : len(everyone) + 1])

    def request(n: int) -> object:
        user = n % len(everyone)
        one = histories.select(user, user + 1)
        scores = scorer.scores(one)[0]
        scores[one.items] = -np.inf
        best = np.argpartition(-scores, K)[:K] if len(scores) > K else np.arange(len(scores))
        return best[np.argsort(-scores[best])]

    return measure(request, _TORCH_REQUESTS)


def _once(
    run: Run,
    dataset: Dataset,
    name: str,
    task: object,
    make: Callable[..., TrainedModel],
) -> TrainedModel:
    """A model that is trained unless the folder already has it from the same data, configuration and seed.

    make: of `checkpoint` and `on_epoch`.
    """
    folder, checkpoint = run.folder / name, (run.folder / "checkpoints" / name).absolute()
    made_from = key_of(dataset.fingerprint(), run.config.seed, task)
    if SAVED.made_from(folder) == made_from:
        trained = load_model(folder, dataset)
        drop_checkpoint(checkpoint)
        run.progress.say(f"{name}: already trained, validation NDCG@10 {trained.best_ndcg:.4f}")
        return trained

    with _measured(run, name):
        trained = run.workers.together(
            lambda on_epoch: make(checkpoint=checkpoint, on_epoch=on_epoch),
            lambda epoch, total: run.progress.advance(name, epoch.epoch, total, _epoch_note(epoch)),
        )
    save_model(trained, folder, made_from)
    drop_checkpoint(checkpoint)
    curve = trained.record.curve
    run.progress.advance(name, curve[-1].epoch, curve[-1].epoch, f"best validation NDCG@10 {trained.best_ndcg:.4f}")
    run.progress.say(
        f"{name}: {type(trained.model).__name__.lower()}, {trained.model.parameter_count():,} parameters, "
        f"best epoch {trained.record.best_epoch} of {len(curve)}, validation NDCG@10 {trained.best_ndcg:.4f}, "
        f"{trained.seconds:.0f} s"
    )
    return trained


def _epoch_note(epoch: Epoch) -> str:
    return f"loss {epoch.loss:.3f}, validation NDCG@10 {epoch.validation_ndcg:.4f}"


@dataclass
class _Stage:
    """reused: nothing was done, what an earlier run had done is used."""

    reused: bool = False


@contextmanager
def _measured(run: Run, name: str) -> Iterator[_Stage]:
    """Writes time and peak memory of a stage into costs.json; a stage that did nothing leaves what is there.

    Time and memory are those of this process; workers of a cluster are not counted.
    """
    stage, began = _Stage(), time.perf_counter()
    reset_peak_memory()
    yield stage
    costs = {cost.stage: cost for cost in read_costs(run.folder)}
    if not (stage.reused and name in costs):
        run.folder.mkdir(parents=True, exist_ok=True)
        costs[name] = StageCost(name, time.perf_counter() - began, peak_memory())
        write_json(run.folder / "costs.json", list(costs.values()))


def read_costs(folder: Path) -> tuple[StageCost, ...]:
    """Time and memory of the stages of a run so far."""
    path = folder / "costs.json"
    if not path.is_file():
        return ()
    fix = "delete it: only the times of the stages so far are lost"
    return read_json(path, tuple[StageCost, ...], error=ConfigError, fix=fix)
