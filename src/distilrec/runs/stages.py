"""The whole line, stage by stage. Every stage reads what the one before wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.bundle.manifest import Manifest
from distilrec.data.dataset import Dataset
from distilrec.data.order import MANY_TIES
from distilrec.data.preparation import Choices, Circumstances, prepare_source
from distilrec.data.pseudonyms import pseudonym, pseudonym_key
from distilrec.distill.distillation import distill_model
from distilrec.distill.sources import AskedTeacher, Labels
from distilrec.export.export import export_bundle, record_metrics
from distilrec.files import locked, write_json
from distilrec.ids import as_id
from distilrec.labels.extract import extract_labels
from distilrec.labels.store import LABELS, LabelStore
from distilrec.measure.ranking import Scorer, questions
from distilrec.progress import Progress
from distilrec.report.baselines import fitted_baselines
from distilrec.report.comparison import (
    ALONE,
    STUDENT,
    Candidate,
    Comparison,
    StageCost,
    Trials,
    compare,
)
from distilrec.report.page import write_report
from distilrec.runs import erasure
from distilrec.runs.artifact import measured_stage, record_cost, trained_once
from distilrec.runs.baseline import is_worth_a_process, train_baseline, with_baseline
from distilrec.runs.candidates import model_bytes, student_candidate, teacher_candidates, tree_of
from distilrec.runs.config import RunConfig
from distilrec.runs.folder import Run, choices_of, finish_erasure, read_costs, run_of
from distilrec.runs.generations import Generations
from distilrec.runs.headroom import headroom_of, warn_of_little_headroom
from distilrec.runs.seen import record_users
from distilrec.runs.source import keeps_log, name_of, source_of
from distilrec.runs.teachers import join_own_teacher, open_teacher, train_teacher
from distilrec.teachers.build import item_vectors, known_baselines
from distilrec.teachers.ensemble import single_teachers
from distilrec.teachers.teacher import Teacher
from distilrec.training.trained import SAVED, TrainedModel, load_model
from distilrec.training.warm import Start
from distilrec.workers import Workers


def run_all(
    config: RunConfig,
    folder: Path,
    progress: Progress | None = None,
    teacher: Callable[[Dataset], Teacher] | None = None,
    workers: Workers | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Comparison:
    """Log -> data -> teacher -> labels -> student, with and without distillation -> bundle ->
    comparison and report.

    teacher: makes your own teacher for the prepared data (`distilrec.teachers.external`,
    `distilrec.teachers.adapters`), in place of the configured one. workers: such as
    `distilrec.scale.ray_workers.RayWorkers`. device: where networks are trained and asked, "auto",
    "cpu", "cuda", "cuda:1" or "mps". precision: what matrix products of the trainings are computed
    in, "auto", "float32" or "bf16". Raises FolderHeldError while another process works on the run.
    """
    run = run_of(folder, config, progress, workers, device, precision)
    with _held(folder):
        dataset = _prepared(run)
        if teacher is None:
            train_teacher(run, dataset)
        else:
            run = replace(run, own_teacher=join_own_teacher(run, dataset, teacher(dataset)))
        baselines = fitted_baselines(dataset, known_baselines(open_teacher(run, dataset)))
        train_students(run, dataset, baselines)
        export(run, dataset, measured_next=True)
        return evaluate(run, dataset, baselines)


def prepare(
    config: RunConfig,
    folder: Path,
    progress: Progress | None = None,
    workers: Workers | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> tuple[Run, Dataset]:
    """Read, clean, split and encode the data, and begin the run folder. Raises FolderHeldError
    while another process works on the run.
    """
    run = run_of(folder, config, progress, workers, device, precision)
    with _held(folder):
        return run, _prepared(run)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=False):
        yield


def _prepared(run: Run) -> Dataset:
    config, data = run.config, run.config.data
    source = source_of(run)
    choices = Choices(
        name_of(data),
        config.cleaning,
        config.split,
        data.derived_features,
        data.order,
        data.draw,
        data.ties,
    )
    keep = run.places.log if keeps_log(run) else None
    circumstances = Circumstances(
        run.workers, run.places.parts, on_step=run.progress.advance, keep=keep
    )
    with measured_stage(run, "prepare"):
        dataset = prepare_source(source, choices, circumstances)
    # A run that cannot be evaluated had better fail now than after the training.
    questions(dataset, "validation")
    questions(dataset, "test")
    dataset.save(run.places.data, choices_of(config))
    write_json(run.places.config, config)
    if keep is None and data.interactions != str(run.places.log.absolute()):
        shutil.rmtree(run.places.log, ignore_errors=True)  # of an earlier preparation
    finish_erasure(run)
    _say_prepared(run, dataset)
    return dataset


def _say_prepared(run: Run, dataset: Dataset) -> None:
    say = run.progress.say
    for line in (*dataset.info.cleaning_report.lines(), *dataset.info.notes):
        say(line)
    say(
        f"{dataset.users:,} users, {dataset.catalogue_size:,} items, "
        f"{int(dataset.is_training().sum()):,} training rows, "
        f"split {dataset.info.split.kind}"
    )
    of_rows = run.config.data.ties == "auto" and dataset.info.order == "time"
    if not of_rows or dataset.info.schema.timestamp is None:
        return
    rows, tied = len(dataset.training_rows()), dataset.tied_events()
    if tied >= MANY_TIES * rows:
        say(
            f"{tied:,} of {rows:,} training rows have the same time as the one before of their "
            "user: their order is that of the rows; where that means nothing, as in a basket, "
            'ties = "unordered" in [data] may make every model better'
        )


def train_students(
    run: Run, dataset: Dataset, baselines: Mapping[str, Scorer] | None = None
) -> TrainedModel:
    """Train the student with and without distillation; return the former. Say where there is little
    to distil as soon as it is known.

    Both are trained at the same time where two threads of a CPU can share them; otherwise the one
    without distillation is first. baselines: by name, fitted here by default.
    """
    if not is_worth_a_process(run, dataset):
        train_baseline(run, dataset)
        warn_of_little_headroom(run, dataset, baselines)
        return distill_student(run, dataset)
    before = warn_of_little_headroom(run, dataset, baselines)
    trained = with_baseline(run, dataset, lambda shared: distill_student(shared, dataset))
    warn_of_little_headroom(run, dataset, baselines, before)
    return trained


def distill_student(run: Run, dataset: Dataset, start: Start | None = None) -> TrainedModel:
    """Train the student on the stored labels of the teacher, which are extracted first, or on a
    teacher that is asked; a private one learns from the log alone.

    start: what a refresh begins with.
    """
    config, training, distillation = (
        run.config.student,
        run.config.student_training,
        run.config.distillation,
    )
    if run.config.privacy is not None:
        from distilrec.privacy.dpsgd import train_private  # Opacus is an extra of its own

        private = partial(train_private, config, dataset, run.config.privacy, seed=run.config.seed)
        trained = trained_once(
            run,
            dataset,
            "student",
            (config, run.config.privacy),
            private,
        )
        run.progress.say(
            f"student: differentially private, {trained.record.privacy}; no labels of the teacher"
        )
        return trained
    labels = student_labels(run, dataset, None if start is None else start.trained_from)
    manifests = [of_teacher.manifest for of_teacher in labels]
    made_from: tuple[object, ...] = (config, training, distillation, manifests)
    distill = partial(
        distill_model, config, dataset, labels, training, distillation, seed=run.config.seed
    )
    if start is not None:
        made_from, distill = (*made_from, start.key), partial(distill, start=start)
    trained = trained_once(run, dataset, "student", made_from, distill)
    if distillation.labels == "asked":
        record_cost(run, StageCost("teacher asked", trained.seconds_asked, 0))
        run.progress.say(
            f"labels: the teacher was asked during the training, {trained.seconds_asked:.0f} s of "
            f"its {trained.seconds:.0f} s"
        )
    return trained


def student_labels(
    run: Run, dataset: Dataset, trained_from: NDArray[np.int64] | None = None
) -> list[Labels]:
    """Return the labels that the student learns from: stored ones, which are extracted first, or
    teachers that are asked. trained_from: (users,), the row of each user before which none gets a
    label; all do by default.
    """
    if run.config.distillation.labels == "stored":
        return [*teacher_labels(run, dataset, trained_from)]
    teachers = _labelling_teachers(run, dataset).values()
    return [AskedTeacher(teacher, dataset, run.config.labels) for teacher in teachers]


def _labelling_teachers(run: Run, dataset: Dataset) -> dict[Path, Teacher]:
    """Return the teacher, or for a curriculum each member of an ensemble, by the folder of its
    labels.
    """
    teacher, folder = open_teacher(run, dataset), run.labels or run.places.labels
    if not run.config.distillation.curriculum:
        return {folder: teacher}
    return {folder / f"member-{n}": member for n, member in enumerate(single_teachers(teacher))}


def teacher_labels(
    run: Run, dataset: Dataset, trained_from: NDArray[np.int64] | None = None
) -> list[LabelStore]:
    """Extract the labels of the teacher, or for a curriculum those of each member of an ensemble;
    return them. trained_from: as in `student_labels`.
    """
    teachers = _labelling_teachers(run, dataset)
    with measured_stage(run, "labels", [(LABELS, folder) for folder in teachers]):
        stores = [
            extract_labels(
                teacher,
                dataset,
                folder,
                run.config.labels,
                seed=run.teacher_seed,
                mask_seen=run.config.student_training.mask_seen,
                options=run.options,
                trained_from=trained_from,
            )
            for folder, teacher in teachers.items()
        ]
    for store in stores:
        cost = store.extraction
        run.progress.say(
            f"labels: {cost.labels:,} for {cost.events:,} training events, {cost.bytes / 1e6:.1f} "
            f"MB on disk, {cost.seconds:.0f} s"
        )
    return stores


def export(run: Run, dataset: Dataset, *, measured_next: bool = False) -> Manifest:
    """Write the bundle of the distilled student, and of the one without distillation where it has
    been trained.

    measured_next: `evaluate` follows, which writes its metrics into the bundle and says under which
    version.
    """
    teacher = open_teacher(run, dataset)
    student = load_model(run.places.student, dataset)
    # What the teacher would recommend is not private.
    shown = teacher if run.config.privacy is None else None
    record = partial(record_training, run, dataset)
    with measured_stage(run, "export"):
        manifest = export_bundle(
            student, dataset, run.bundle, teacher=shown, config=run.config.bundle, before=record
        )
        if (run.places.baseline / SAVED.file).is_file():
            baseline = load_model(run.places.baseline, dataset)
            export_bundle(
                baseline, dataset, run.bundle_baseline, config=run.config.bundle, before=record
            )
    search = manifest.search
    run.progress.say(
        f"bundle in {run.bundle}: "
        + ("" if measured_next else f"model {manifest.model_version}, ")
        + f"{model_bytes(manifest):,} bytes of model"
        + (
            f", {search.kind} search with recall@10 {search.recall:.4f}"
            if search.kind != "exact"
            else ""
        )
    )
    return manifest


def record_training(run: Run, dataset: Dataset, manifest: Manifest) -> None:
    """Record who was in the training of a model, for `distilrec seen`, before the model is there
    to be used.

    Its metrics are a part of its version: what is exported and what was measured are two versions
    of the same model.
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
    """Take a user out of a run and its generations: out of the data, the labels and the histories
    of the bundles; return what was done.

    user_id: the id or the pseudonym; with pseudonyms, an id needs their key. The user is put on the
    list of those that `prepare` leaves out of this run from now on. Labels, unfinished trainings
    and scores of a teacher go as a whole, they are made again when they are needed. Weights stay as
    they are until they are trained again. Where this is killed, the next command on this run
    finishes the work.
    Raises InvalidIdError, and UnknownUserError for a user that this run does not know, unless
    `missing_ok` is set.
    """
    names, key = [as_id(user_id, "user_id")], run.config.data.pseudonym_key
    if key is not None and key in os.environ:
        names.append(pseudonym(names[0], pseudonym_key(key)))
    # The run is the last one: what it has done is done everywhere
    lines = [
        line
        for folder in Generations(run.folder).folders()
        for line in erasure.forget(folder, names, missing_ok=True)
    ]
    return lines + erasure.forget(run.folder, names, missing_ok=missing_ok or bool(lines))


def evaluate(
    run: Run, dataset: Dataset, baselines: Mapping[str, Scorer] | None = None
) -> Comparison:
    """Compare all models on the test part; write `comparison.json`, `report.html`, and the metrics
    in the bundle's manifest.

    baselines: by name, fitted here by default.
    """
    with measured_stage(run, "evaluate"):
        teacher = open_teacher(run, dataset)
        if baselines is None:
            baselines = fitted_baselines(dataset, known_baselines(teacher))
        comparison = _compared(run, dataset, teacher, baselines)
    metrics = {name: value.mean for name, value in comparison.row(STUDENT).quality.items()}
    manifest = record_metrics(run.bundle, metrics, partial(record_training, run, dataset))
    costs, tree = read_costs(run.folder), tree_of(run, dataset)
    comparison = msgspec.structs.replace(
        comparison,
        costs=costs,
        tree=tree,
        privacy=manifest.privacy,
        trials=Trials(run.config.tuned.student, run.config.tuned.baseline),
        headroom=headroom_of(run, dataset, baselines),
        validation=_on_validation(run, dataset),
    )
    write_json(run.places.comparison, comparison)
    write_report(comparison, run.places.report)
    run.progress.say(
        f"bundle in {run.bundle}: model {manifest.model_version}, with the metrics just measured"
    )
    run.progress.say(f"report in {run.places.report}")
    return comparison


def _on_validation(run: Run, dataset: Dataset) -> dict[str, float]:
    """Return NDCG@10 of the students that the run has, on the validation part."""
    folders = {STUDENT: run.places.student, ALONE: run.places.baseline}
    return {
        name: load_model(folder, dataset).best_ndcg
        for name, folder in folders.items()
        if (folder / SAVED.file).is_file()
    }


def _compared(
    run: Run, dataset: Dataset, teacher: Teacher, baselines: Mapping[str, Scorer]
) -> Comparison:
    """Return the comparison of all models on the test part."""
    candidates = [
        *teacher_candidates(teacher, dataset),
        student_candidate(dataset, STUDENT, run.places.student, run.bundle),
    ]
    if run.bundle_baseline.is_dir():
        candidates.append(
            student_candidate(dataset, ALONE, run.places.baseline, run.bundle_baseline)
        )
    candidates += [Candidate(name, (scorer,), logits=False) for name, scorer in baselines.items()]
    done = iter(range(len(candidates)))
    compared = compare(
        dataset,
        candidates,
        lambda name: run.progress.advance("evaluate", next(done), len(candidates), name),
        item_vectors(teacher),
    )
    run.progress.advance("evaluate", len(candidates), len(candidates))
    return compared
