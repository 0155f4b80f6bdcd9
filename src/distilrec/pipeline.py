"""The whole line, stage by stage, in one run folder. Every stage reads what the one before wrote.

runs/ml-100k/
config.json       all choices of the run
data/             the prepared data set
teacher/          the trained teacher        checkpoints/   unfinished trainings (resumed, then removed)
labels/           its soft and hard labels
student/          the distilled student      alone/         the same student without distillation
bundle/           what is served             bundle-alone/  the same, of the student without distillation
comparison.json   report.html
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from distilrec.bundle.export import export_bundle, record_metrics
from distilrec.bundle.format import CATALOGUE, WEIGHTS, Manifest
from distilrec.config import RunConfig
from distilrec.data.dataset import Dataset, prepare_dataset
from distilrec.data.fetch import DATASETS, fetch
from distilrec.distill.distillation import distil, train_model
from distilrec.engine.recommender import Recommender, load
from distilrec.errors import ConfigError, FileMissingError
from distilrec.evaluate.baselines import fitted_baselines
from distilrec.evaluate.comparison import ALONE, STUDENT, TEACHER, BundleScorer, Candidate, Comparison, K, compare
from distilrec.evaluate.latency import Latency, measure
from distilrec.evaluate.ranking import Scorer, questions
from distilrec.evaluate.report import write_report
from distilrec.knowledge.extract import extract_labels
from distilrec.models import ModelConfig, TrainedModel, load_model, save_model
from distilrec.training.model import TorchScorer
from distilrec.training.trainer import Epoch, TrainingConfig

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


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration."""

    folder: Path
    config: RunConfig
    progress: Progress

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def bundle_alone(self) -> Path:
        return self.folder / "bundle-alone"


def open_run(folder: Path, progress: Progress | None = None) -> Run:
    """A run that `prepare` began. Raises FileMissingError and ConfigError."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileMissingError(
            f"{folder} is no run folder (no config.json)", fix="begin with `distilrec prepare`", file=str(path)
        )
    try:
        config = msgspec.json.decode(path.read_bytes(), type=RunConfig)
    except msgspec.MsgspecError as problem:
        raise ConfigError(f"{path}: {problem}", fix="begin again with `distilrec prepare`", file=str(path)) from None
    return Run(folder, config, progress or Silent())


def run_all(config: RunConfig, folder: Path, progress: Progress | None = None) -> Comparison:
    """Log -> data -> teacher -> labels -> student -> bundle -> comparison and report."""
    run, dataset = prepare(config, folder, progress)
    train_teacher(run, dataset)
    distil_student(run, dataset)
    train_alone(run, dataset)
    export(run, dataset)
    return evaluate(run, dataset)


def prepare(config: RunConfig, folder: Path, progress: Progress | None = None) -> tuple[Run, Dataset]:
    """Reads, cleans, splits and encodes the data, and begins the run folder."""
    run = Run(folder, config, progress or Silent())
    data, say = config.data, run.progress.say
    if data.dataset is not None:
        source = fetch(data.dataset, say)
        dataset = prepare_dataset(
            source / "interactions.csv",
            DATASETS[data.dataset].schema,
            users=source / "users.csv",
            items=source / "items.csv",
            name=data.dataset,
            cleaning=config.cleaning,
            split=config.split,
        )
    else:
        assert data.interactions is not None
        dataset = prepare_dataset(
            data.interactions,
            data.schema,
            users=data.users,
            items=data.items,
            name=data.name or Path(data.interactions).stem,
            cleaning=config.cleaning,
            split=config.split,
            columns=data.columns,
            user_columns=data.user_columns,
            item_columns=data.item_columns,
        )
    questions(dataset, "validation")  # a run that cannot be evaluated had better fail now than after the training
    questions(dataset, "test")
    dataset.save(folder / "data")
    (folder / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    for line in (*dataset.info.cleaning_report.lines(), *dataset.info.notes):
        say(line)
    say(
        f"{dataset.users:,} users, {dataset.catalogue_size:,} items, {int(dataset.is_training().sum()):,} training rows, "
        f"split {config.split.kind}"
    )
    return run, dataset


def train_teacher(run: Run, dataset: Dataset) -> TrainedModel:
    """The teacher, trained on the ground truth."""
    return _on_ground_truth(run, dataset, "teacher", run.config.teacher, run.config.teacher_training)


def distil_student(run: Run, dataset: Dataset) -> TrainedModel:
    """The labels of the teacher, and the student that learns from them."""
    teacher = load_model(run.folder / "teacher", dataset)
    labels = extract_labels(
        teacher,
        dataset,
        run.folder / "labels",
        run.config.labels,
        seed=run.config.seed,
        mask_seen=run.config.student_training.mask_seen,
        on_batch=lambda done, total: run.progress.advance("labels", done, total),
    )
    config, training, distillation = run.config.student, run.config.student_training, run.config.distillation
    return _once(
        run,
        dataset,
        "student",
        (config, training, distillation, labels.manifest),
        lambda checkpoint, on_epoch: distil(
            config,
            dataset,
            labels,
            training,
            distillation,
            seed=run.config.seed,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        ),
    )


def train_alone(run: Run, dataset: Dataset) -> TrainedModel:
    """The same student without distillation: the comparison that shows what the teacher was good for."""
    return _on_ground_truth(run, dataset, "alone", run.config.student, run.config.student_training)


def _on_ground_truth(
    run: Run, dataset: Dataset, name: str, config: ModelConfig, training: TrainingConfig
) -> TrainedModel:
    return _once(
        run,
        dataset,
        name,
        (config, training),
        lambda checkpoint, on_epoch: train_model(
            config, dataset, training, seed=run.config.seed, checkpoint=checkpoint, on_epoch=on_epoch
        ),
    )


def export(run: Run, dataset: Dataset) -> Manifest:
    """The bundle of the distilled student, and of the one without distillation where it has been trained."""
    teacher = load_model(run.folder / "teacher", dataset)
    student = load_model(run.folder / "student", dataset)
    manifest = export_bundle(student, dataset, run.bundle, teacher=teacher)
    if (run.folder / "alone" / "model.json").is_file():
        export_bundle(load_model(run.folder / "alone", dataset), dataset, run.bundle_alone)
    run.progress.say(
        f"bundle in {run.bundle}: model {manifest.model_version}, {model_bytes(manifest):,} bytes of model"
    )
    return manifest


def evaluate(run: Run, dataset: Dataset) -> Comparison:
    """The comparison on the test part, `comparison.json`, `report.html`, and the metrics in the bundle's manifest."""
    teacher = load_model(run.folder / "teacher", dataset)
    candidates = [teacher_candidate(teacher, dataset), student_candidate(run, dataset, STUDENT, "student", run.bundle)]
    if run.bundle_alone.is_dir():
        candidates.append(student_candidate(run, dataset, ALONE, "alone", run.bundle_alone))
    candidates += [Candidate(name, (scorer,), logits=False) for name, scorer in fitted_baselines(dataset).items()]
    done = iter(range(len(candidates)))
    comparison = compare(
        dataset,
        candidates,
        lambda name: run.progress.advance("evaluate", next(done), len(candidates), name),
        teacher.model.items.vectors().detach().numpy(),
    )
    run.progress.advance("evaluate", len(candidates), len(candidates))
    (run.folder / "comparison.json").write_bytes(msgspec.json.format(msgspec.json.encode(comparison)))
    record_metrics(run.bundle, {name: value.mean for name, value in comparison.row(STUDENT).quality.items()})
    write_report(comparison, run.folder / "report.html")
    run.progress.say(f"report in {run.folder / 'report.html'}")
    return comparison


def teacher_candidate(teacher: TrainedModel, dataset: Dataset) -> Candidate:
    """The teacher, with what it costs through torch."""
    scorer = TorchScorer(teacher.model)
    parameters = teacher.model.parameter_count()
    return Candidate(
        TEACHER,
        (scorer,),
        parameters,
        4 * parameters,
        teacher.seconds,
        torch_latency(scorer, dataset),
        teacher.record.curve,
    )


def student_candidate(run: Run, dataset: Dataset, name: str, folder: str, bundle: Path) -> Candidate:
    """A student as its bundle serves it."""
    trained = load_model(run.folder / folder, dataset)
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
    make: Callable[[Path, Callable[[Epoch, int], None]], TrainedModel],
) -> TrainedModel:
    """A model that is trained unless the folder already has it from the same data, configuration and seed."""
    folder, checkpoint = run.folder / name, run.folder / "checkpoints" / name
    stamp = msgspec.json.encode((dataset.fingerprint(), run.config.seed, task))
    stamp_file = folder / "trained-with.json"
    if stamp_file.is_file() and stamp_file.read_bytes() == stamp:
        trained = load_model(folder, dataset)
        run.progress.say(f"{name}: already trained, validation NDCG@10 {trained.best_ndcg:.4f}")
        return trained

    def on_epoch(epoch: Epoch, total: int) -> None:
        run.progress.advance(
            name, epoch.epoch, total, f"loss {epoch.loss:.3f}, validation NDCG@10 {epoch.validation_ndcg:.4f}"
        )

    trained = make(checkpoint, on_epoch)
    save_model(trained, folder)
    stamp_file.write_bytes(stamp)
    shutil.rmtree(checkpoint, ignore_errors=True)
    curve = trained.record.curve
    run.progress.advance(name, curve[-1].epoch, curve[-1].epoch, f"best validation NDCG@10 {trained.best_ndcg:.4f}")
    run.progress.say(
        f"{name}: {type(trained.model).__name__.lower()}, {trained.model.parameter_count():,} parameters, "
        f"best epoch {trained.record.best_epoch} of {len(curve)}, validation NDCG@10 {trained.best_ndcg:.4f}, "
        f"{trained.seconds:.0f} s"
    )
    return trained
