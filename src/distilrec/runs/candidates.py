"""What a comparison measures: teacher, members, students, with their costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec import UNSET

from distilrec.bundle.manifest import CATALOGUE, WEIGHTS, Manifest
from distilrec.data.dataset import Dataset
from distilrec.engine.recommender import Recommender, load
from distilrec.errors import BundleError
from distilrec.export.export import holds
from distilrec.measure.latency import Latency, Request, measure
from distilrec.measure.ranking import Scorer
from distilrec.networks.student import Student, TreeNode
from distilrec.report.comparison import MEMBER, TEACHER, BundleScorer, Candidate, K
from distilrec.runs.folder import Run
from distilrec.teachers.build import kind_of
from distilrec.teachers.ensemble import EnsembleTeacher
from distilrec.teachers.teacher import Teacher
from distilrec.training.trained import load_model

_ENGINE_REQUESTS, _TORCH_REQUESTS = 2_000, 100


def tree_of(run: Run, dataset: Dataset) -> TreeNode | None:
    """Return the student in words, where it is a tree; the shares are those of all users after
    their training history.
    """
    student = load_model(run.places.student, dataset).model
    return student.in_words(dataset) if isinstance(student, Student) else None


def teacher_candidates(teacher: Teacher, dataset: Dataset) -> list[Candidate]:
    """Return the teacher with what it costs through torch, and the members of an ensemble of
    several, each by itself.
    """
    candidates = [teacher_candidate(TEACHER, teacher, dataset)]
    if isinstance(teacher, EnsembleTeacher) and len(teacher.members) > 1:
        for number, member in enumerate(teacher.members, start=1):
            name = f"{MEMBER} {number}: {kind_of(member)}"
            candidates.append(teacher_candidate(name, member, dataset))
    return candidates


def teacher_candidate(name: str, teacher: Teacher, dataset: Dataset) -> Candidate:
    """Return a teacher as one row of the comparison, with its parameters and the time of its
    requests.
    """
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


def student_candidate(dataset: Dataset, name: str, folder: Path, bundle: Path) -> Candidate:
    """Return a student as its bundle serves it."""
    trained = load_model(folder, dataset)
    if not holds(bundle, trained):
        raise BundleError(
            f"the bundle in {bundle} is not of the model in {folder}",
            fix="export it again (distilrec export)",
            file=str(bundle),
        )
    recommender = load(bundle)
    calibration = recommender.manifest.calibration
    return Candidate(
        name,
        (BundleScorer(bundle, dataset),),
        trained.model.parameter_count(),
        model_bytes(recommender.manifest),
        trained.seconds,
        engine_latency(recommender, dataset),
        trained.record.curve,
        temperatures=() if calibration is UNSET else (calibration.temperature,),
    )


def model_bytes(manifest: Manifest) -> int:
    """Return the bytes of the model in a bundle: weights and catalogue. The users' history is data,
    not model.
    """
    return manifest.files[WEIGHTS].bytes + manifest.files[CATALOGUE].bytes


def engine_latency(recommender: Recommender, dataset: Dataset) -> Latency:
    """Return the latency of `Recommender.recommend`, top 10, for users with their whole history in
    the state.
    """
    return measure(engine_request(recommender, dataset), _ENGINE_REQUESTS)


def engine_request(recommender: Recommender, dataset: Dataset) -> Request:
    """Return a request to an engine that has the whole history of each user in the state."""
    users = dataset.info.user_ids[: dataset.info.warm_users]
    for user in users:
        recommender.recommend(user)
    return lambda n: recommender.recommend(users[n % len(users)])


def torch_latency(scorer: Scorer, dataset: Dataset) -> Latency:
    """Return the latency of the same answer through torch."""
    return measure(torch_request(scorer, dataset), _TORCH_REQUESTS)


def torch_request(scorer: Scorer, dataset: Dataset) -> Request:
    """Return a request to a model of torch: the history in, the ten best unseen items out, one user
    at a time.
    """
    everyone = np.arange(dataset.info.warm_users)
    histories = dataset.histories(everyone, dataset.offsets[1 : len(everyone) + 1])

    def request(n: int) -> object:
        user = n % len(everyone)
        history = histories.select(user, user + 1)
        scores = scorer.scores(history)[0]
        scores[history.items] = -np.inf
        best = np.argpartition(-scores, K)[:K] if len(scores) > K else np.arange(len(scores))
        return best[np.argsort(-scores[best])]

    return request
