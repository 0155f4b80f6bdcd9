"""What each user gets from the models of a sweep, measured once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.export.export import export_bundle
from distilrec.export.search import BundleConfig
from distilrec.files import RecordKind, key_of
from distilrec.measure.latency import Latency
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Questions, Scorer, questions, rank
from distilrec.measure.slices import target_slices
from distilrec.report.comparison import BundleScorer, K
from distilrec.report.sweep import Cost, Measured
from distilrec.runs.candidates import model_bytes
from distilrec.teachers.teacher import Teacher
from distilrec.training.trained import TrainedModel

_FIGURES = "figures"
_VALIDATION, _TEST = "validation", "test"
# Groups of held-out items of whose users or items little is known, by how their names begin
_GROUPS = ("cold users", "short history", "tail items", "cold items")
_FEWEST_USERS = 20  # of a group that is looked at by itself


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a measured model besides what each user got. size: in bytes; seconds: of its
    training.
    """

    parameters: int | None
    size: int | None
    seconds: float | None


MEASURED = RecordKind(
    "measured.json",
    Figures,
    (_FIGURES,),
    1,
    TrainingError,
    what="measured student",
    fix="run `distilrec sweep`",
    again="run `distilrec sweep` again, after deleting {folder}",
)


@dataclass(frozen=True)
class Kept:
    """One measured training: its figures, and what each user got, (users,) each by its name."""

    figures: Figures
    arrays: Mapping[str, NDArray[np.float64]]


def measured_student(
    trained: TrainedModel, dataset: Dataset, folder: Path, config: BundleConfig, scratch: Path
) -> Kept:
    """Return what a student gives through its bundle, measured unless `folder` has it.

    scratch: a folder for the bundle, which is removed again.
    """

    def measure() -> Kept:
        bundle = scratch / "measured"
        manifest = export_bundle(trained, dataset, bundle, with_history=False, config=config)
        figures = Figures(manifest.parameters, model_bytes(manifest), trained.seconds)
        kept = Kept(figures, _per_user(BundleScorer(bundle, dataset), dataset))
        shutil.rmtree(bundle)
        return kept

    return _measured_once(folder, key_of(dataset.fingerprint(), trained.record.identity), measure)


def measured_teacher(teacher: Teacher, dataset: Dataset, folder: Path) -> Kept:
    """Return what a teacher gives, measured unless `folder` has it."""

    def measure() -> Kept:
        parameters = teacher.cost.parameters
        size = None if parameters is None else 4 * parameters
        figures = Figures(parameters, size, teacher.cost.seconds)
        return Kept(figures, _per_user(teacher, dataset))

    return _measured_once(folder, key_of(dataset.fingerprint(), teacher.identity), measure)


def _measured_once(folder: Path, made_from: str, measure: Callable[[], Kept]) -> Kept:
    if not MEASURED.is_made(folder, made_from):
        measured = measure()
        MEASURED.write(folder, measured.figures, {_FIGURES: measured.arrays}, made_from=made_from)
    record = MEASURED.read(folder)
    return Kept(record.about, record.arrays(_FIGURES))


def _per_user(scorer: Scorer, dataset: Dataset) -> dict[str, NDArray[np.float64]]:
    """Return NDCG@10 of each user of validation and test, and for each group of held-out items the
    share of a user's that is among the first 10.
    """
    test = questions(dataset, "test")
    ranking = rank(scorer, test, K)
    arrays = {
        _VALIDATION: ndcg(rank(scorer, questions(dataset, "validation"), 0), K),
        _TEST: ndcg(ranking, K),
    }
    hits, owners = ranking.chances(K).sum(1), ranking.owners()
    for name, inside in _groups(dataset, test).items():
        counts, sums = np.bincount(owners[inside]), np.bincount(owners[inside], hits[inside])
        arrays[name] = sums[counts > 0] / counts[counts > 0]
    return arrays


def _groups(dataset: Dataset, asked: Questions) -> dict[str, NDArray[np.bool_]]:
    """Return the groups that are looked at by themselves, (targets,) bool each."""
    users = asked.users_of_targets()
    return {
        name: inside
        for name, inside in target_slices(dataset, asked.targets, users).items()
        if name.startswith(_GROUPS) and len(np.unique(users[inside])) >= _FEWEST_USERS
    }


def group_sizes(dataset: Dataset) -> dict[str, int]:
    """Return the number of held-out items in each group."""
    groups = _groups(dataset, questions(dataset, "test"))
    return {name: int(inside.sum()) for name, inside in groups.items()}


def per_user_and_seed(seeds: Sequence[Kept]) -> Measured:
    """Return what the trainings of one student gave, (seeds, users) each."""
    together = {
        name: np.stack([of_seed.arrays[name] for of_seed in seeds]) for name in seeds[0].arrays
    }
    return Measured(together.pop(_VALIDATION), together.pop(_TEST), together)


def cost_of(seeds: Sequence[Kept], latency: Latency | None) -> Cost:
    """Return what a student costs: the mean time of its trainings, the size of the first."""
    first = seeds[0].figures
    times = [of_seed.figures.seconds for of_seed in seeds if of_seed.figures.seconds is not None]
    seconds = float(np.mean(times)) if times else None
    return Cost(first.parameters, first.size, seconds, latency)
