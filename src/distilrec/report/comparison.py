"""One table: teacher, student, the same student without distillation, baselines. Same users, same
questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.bundle.format import read_bundle
from distilrec.bundle.privacy import PrivacyRecord
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.data.order import Order
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.measure import metrics
from distilrec.measure.asked import user_asked
from distilrec.measure.latency import Latency
from distilrec.measure.ranking import Questions, Ranking, Scorer, Tempered, rank
from distilrec.measure.ranking import questions as questions_of
from distilrec.measure.slices import target_slices
from distilrec.measure.statistics import Difference, Interval, bootstrap_each, paired_difference
from distilrec.networks.student import TreeNode
from distilrec.report.fidelity import Fidelity, fidelity
from distilrec.report.headroom import Headroom
from distilrec.training.options import Epoch

K = 10
TEACHER, STUDENT, ALONE = "teacher", "student", "student without distillation"
CALIBRATED = "calibration error at its temperature"
EARLIER = "the bundle before"  # of a refresh
MEMBER = "member"  # how the names of an ensemble's members begin


class BundleScorer:
    """The scores that the exported bundle gives: what is served is what is measured."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._runtime = make_runtime(bundle := read_bundle(folder))
        table = bundle.weights.user_table
        features = dataset.user_features
        self._users = np.einsum("uc,ucd->ud", features.weights, table[features.columns]).astype(
            np.float32
        )

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return the scores of all items, (batch, items) float32."""
        return np.stack([self._one(histories, k) for k in range(len(histories))])

    def _one(self, histories: Histories, k: int) -> NDArray[np.float32]:
        state = self._runtime.new_state()
        start, stop = histories.offsets[k], histories.offsets[k + 1]
        self._runtime.fold(state, histories.items[start:stop], histories.events[start:stop])
        user = user_asked(self._runtime, self._users[histories.users[k]], histories, k)
        return self._runtime.scores(self._runtime.query(state, user))


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: one scorer per seed, and what is known about its cost.

    size: bytes of the weights (of the exported bundle for a student); latency: of one request;
    logits: whether a softmax of its scores is meant as probabilities (only then is a calibration
    error measured); temperatures: of the scorers, where they have some.
    """

    name: str
    scorers: tuple[Scorer, ...]
    parameters: int | None = None
    size: int | None = None
    training_seconds: float | None = None
    latency: Latency | None = None
    curve: tuple[Epoch, ...] = field(default=())
    logits: bool = True
    temperatures: tuple[float, ...] = ()


class Row(msgspec.Struct, frozen=True):
    """One model of the table. quality: @10 metrics with intervals over users (and seeds); lists:
    what it shows to people; slices: share of held-out items found in the first 10; retention:
    quality / teacher's quality; agreement: share of users whose first item is also the teacher's
    first; ndcg_by_seed: NDCG@10 of each scorer.
    """

    name: str
    ndcg_by_seed: tuple[float, ...]
    quality: dict[str, Interval]
    lists: dict[str, float]
    slices: dict[str, float]
    retention: dict[str, float]
    agreement: float | None
    parameters: int | None
    size: int | None
    training_seconds: float | None
    latency: Latency | None
    curve: tuple[Epoch, ...]

    @property
    def seeds(self) -> int:
        return len(self.ndcg_by_seed)


class StageCost(msgspec.Struct, frozen=True):
    """What a stage of the run cost. peak_bytes: most memory of the process; 0 where the system does
    not say.
    """

    stage: str
    seconds: float
    peak_bytes: int

    def line(self) -> str:
        """Return what is said at the end of the stage."""
        memory = f", peak memory {self.peak_bytes / 2**20:,.0f} MiB" if self.peak_bytes else ""
        return f"{self.stage}: {self.seconds:.1f} s{memory}"


class Trials(msgspec.Struct, frozen=True):
    """How many trials of a search chose the settings of the distilled student, and those of the one
    without distillation.
    """

    student: int
    alone: int


class Comparison(msgspec.Struct, frozen=True):
    """Everything the report shows. costs, tree, privacy, trials, headroom, validation: filled in by
    the run; tree: of a student that is one; privacy: of a student that was trained with
    differential privacy; headroom: what there was to distil; validation: NDCG@10 of the two
    students on the validation part, by name; order: "none" where models were trained on sets
    of events, "ties" where those at the same time have no order; targets: what the events mean, a
    line for each type, empty where every event is to be predicted.
    """

    dataset: str
    split: str
    part: str
    users: int
    unreachable: int
    repeated: int
    exclude_seen: bool
    slice_sizes: dict[str, int]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    costs: tuple[StageCost, ...] = ()
    # The name in comparison.json is that of earlier versions
    fidelity: Fidelity | None = msgspec.field(default=None, name="lost")
    tree: TreeNode | None = None
    privacy: PrivacyRecord | None = None
    trials: Trials | None = None
    headroom: Headroom | None = None
    validation: dict[str, float] = msgspec.field(default_factory=dict)
    order: Order = "time"
    targets: tuple[str, ...] = ()

    def row(self, name: str) -> Row:
        """Return the row of a model."""
        return next(row for row in self.rows if row.name == name)


def compare(
    dataset: Dataset,
    candidates: list[Candidate],
    on_model: Callable[[str], None] = lambda name: None,
    vectors: NDArray[np.float32] | None = None,
) -> Comparison:
    """Measure all candidates on the test part. Raises NothingToEvaluateError.

    vectors: (items, dim) float32, such as the teacher's item vectors: diversity is measured on them
    as well as on features.
    """
    questions = questions_of(dataset, "test")
    slices = target_slices(dataset, questions.targets, questions.users_of_targets())
    measured: dict[str, _Measured] = {}
    for candidate in candidates:
        on_model(candidate.name)
        measured[candidate.name] = _measured(candidate, questions)
    rows = []
    for candidate in candidates:
        rankings = measured[candidate.name].rankings
        lists = _list_metrics(rankings, dataset, candidate.logits, vectors)
        if candidate.temperatures:
            lists[CALIBRATED] = _calibrated_error(candidate, questions)
        rows.append(_row(candidate, measured, lists, slices))
    return Comparison(
        dataset=dataset.info.name,
        split=dataset.info.split.kind,
        part="test",
        users=len(questions.histories),
        unreachable=int((questions.targets == UNKNOWN_ITEM).sum()),
        repeated=questions.repeated,
        exclude_seen=questions.exclude_seen,
        slice_sizes={name: int(inside.sum()) for name, inside in slices.items()},
        rows=tuple(rows),
        differences=tuple(
            _differences({name: result.quality for name, result in measured.items()})
        ),
        fidelity=fidelity(
            dataset,
            {name: result.rankings for name, result in measured.items()},
            TEACHER,
            STUDENT,
            K,
        ),
        order=dataset.info.order,
        targets=dataset.info.targets.lines() if dataset.info.targets else (),
    )


@dataclass(frozen=True)
class _Measured:
    """The rankings of a candidate, one per seed, and its quality by metric, (seeds, users)."""

    rankings: list[Ranking]
    quality: dict[str, NDArray[np.float64]]


def _measured(candidate: Candidate, questions: Questions) -> _Measured:
    # A teacher of several students is ranked once.
    distinct = {id(scorer): scorer for scorer in candidate.scorers}
    ranked = {key: rank(scorer, questions, K) for key, scorer in distinct.items()}
    rankings = [ranked[id(scorer)] for scorer in candidate.scorers]
    by_seed = [{**quality_of(r), "accuracy": metrics.accuracy(r)} for r in rankings]
    return _Measured(
        rankings, {name: np.stack([seed[name] for seed in by_seed]) for name in by_seed[0]}
    )


def _calibrated_error(candidate: Candidate, questions: Questions) -> float:
    """Return the calibration error at the temperatures of a candidate, averaged over seeds."""
    tempered = map(Tempered, candidate.scorers, candidate.temperatures)
    errors = [metrics.calibration_error(rank(scorer, questions, 1)) for scorer in tempered]
    return float(np.mean(errors))


def _row(
    candidate: Candidate,
    measured: dict[str, _Measured],
    lists: dict[str, float],
    slices: dict[str, NDArray[np.bool_]],
) -> Row:
    """Return a candidate as a row of the table, beside the teacher where that is measured too."""
    rankings, quality = measured[candidate.name].rankings, measured[candidate.name].quality
    agreement, retention = None, {}
    if candidate.name != TEACHER and (teacher := measured.get(TEACHER)) is not None:
        pairs = zip(rankings, cycle(teacher.rankings), strict=False)
        agreement = float(np.mean([(a.top[:, 0] == b.top[:, 0]).mean() for a, b in pairs]))
        retention = {
            name: float(values.mean() / teacher.quality[name].mean())
            for name, values in quality.items()
            if teacher.quality[name].mean() > 0
        }
    hits = np.mean([ranking.chances(K).sum(1) for ranking in rankings], axis=0)
    return Row(
        name=candidate.name,
        ndcg_by_seed=tuple(quality[f"ndcg@{K}"].mean(axis=1).tolist()),
        quality=bootstrap_each(quality),
        lists=lists,
        slices={
            name: float(hits[inside].mean()) for name, inside in slices.items() if inside.any()
        },
        retention=retention,
        agreement=agreement,
        parameters=candidate.parameters,
        size=candidate.size,
        training_seconds=candidate.training_seconds,
        latency=candidate.latency,
        curve=candidate.curve,
    )


def quality_of(ranking: Ranking) -> dict[str, NDArray[np.float64]]:
    """Return the quality metrics of a ranking by name, (users,) float64 each."""
    of_lists = {f"{name}@{K}": metric(ranking, K) for name, metric in metrics.QUALITY.items()}
    return of_lists | {"auc": metrics.auc(ranking)}


def _differences(quality: dict[str, dict[str, NDArray[np.float64]]]) -> list[Difference]:
    pairs = [(STUDENT, ALONE), (STUDENT, TEACHER), (ALONE, TEACHER)]
    pairs += [(STUDENT, EARLIER)]
    pairs += [(STUDENT, name) for name in quality if name.startswith(MEMBER)]
    return [
        paired_difference(metric, a, quality[a][metric], b, quality[b][metric])
        for metric in (f"ndcg@{K}", f"hit_rate@{K}")
        for a, b in pairs
        if a in quality and b in quality and len(quality[a][metric]) == len(quality[b][metric])
    ]


def _list_metrics(
    rankings: list[Ranking], dataset: Dataset, logits: bool, vectors: NDArray[np.float32] | None
) -> dict[str, float]:
    """Return what the first K are like, averaged over seeds."""
    popular, size = dataset.popularity(), dataset.catalogue_size
    measures: dict[str, Callable[[Ranking], float]] = {
        "coverage": lambda r: metrics.coverage(r, K, size),
        "gini": lambda r: metrics.gini(r, K, size),
        "entropy": lambda r: metrics.entropy(r, K, size),
        "novelty": lambda r: metrics.novelty(r, K, popular, dataset.info.warm_users),
        "average popularity": lambda r: metrics.average_popularity(r, K, popular),
    }
    if dataset.item_features.width:
        features = dataset.item_features.dense()
        measures["diversity (features)"] = lambda r: metrics.intra_list_distance(r, K, features)
    if vectors is not None:
        measures["diversity (vectors)"] = lambda r: metrics.intra_list_distance(r, K, vectors)
    if logits:
        measures["calibration error"] = metrics.calibration_error
    return {
        name: float(np.mean([measure(r) for r in rankings])) for name, measure in measures.items()
    }
