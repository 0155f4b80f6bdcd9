"""Users without a history: what the student says of them, what is popular of late, and both.

    python bench/strangers.py [--dataset ml-1m] [--seeds 3] [--epochs 10] [--folder FOLDER]

The data sets are those of `bench/quality.py` that have times. The default student is trained
without distillation on the first half of the log; the next fifth is validation, the last three
tenths are test. Each user's first event is asked for at its own time, and so are those after 1, 2,
5, 10 and 20 events; popularity counts all events before that moment, training or not, as a service
would have stored them: in whole hours, of the last 90 days, by half after each half-life.

"both" is score + weight x log(1 + count). Half-life and weight are chosen on validation, on first
events; then how the weight fades with the number of events, on all. Resumes where it was
interrupted. Prints tables and one JSON line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from global_time import served
from numpy.typing import NDArray
from quality import RESULTS, ROOT, SETS, make_tables, seeds_of

from distilrec import runs
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories, Part
from distilrec.data.splits import Split
from distilrec.errors import ConfigError
from distilrec.measure.metrics import hit_rate, ndcg
from distilrec.measure.ranking import Questions, Scorer, rank
from distilrec.measure.statistics import Difference, bootstrap, paired_difference
from distilrec.measure.successive import successive_questions
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.report.comparison import ALONE
from distilrec.runs.config import BaselineConfig, RunConfig, read_config
from distilrec.stores.records import KEPT_HOURS

K = 10
MOST = 1_500  # users who are asked about, drawn, of more with as many events
SPLIT = Split(kind="global-time", validation_share=0.2, test_share=0.3)
LENGTHS = (0, 1, 2, 5, 10, 20)
HALF_LIVES = (6.0, 24.0, 72.0, 168.0, 336.0, 720.0)  # hours
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
FADES: dict[str, Callable[[int], float]] = {
    "w for everybody": lambda n: 1.0,
    "w / sqrt(1 + n)": lambda n: (1 + n) ** -0.5,
    "w / (1 + n)": lambda n: 1 / (1 + n),
    "w for strangers alone": lambda n: float(n == 0),
}
Scores = NDArray[np.float32]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """Scores that have been computed, (questions, items), for the questions in their order."""

    rows: Scores
    of_user: dict[int, int]

    def scores(self, histories: Histories) -> Scores:
        """Return the scores of all items, (batch, items)."""
        return self.rows[[self.of_user[user] for user in histories.users.tolist()]]


class Asked(NamedTuple):
    """The questions about users with the same number of events, one a user. student: (seeds,
    questions, items); late: log(1 + count) by half-life, (questions, items) each.
    """

    questions: Questions
    student: Scores
    late: dict[float, Scores]

    def measured(self, metric: Callable[..., Values], weight: float, half_life: float) -> Values:
        """Return a metric of the student with so much popularity, (seeds, users)."""
        late = np.float32(weight) * self.late[half_life]
        return np.stack([self._of(metric, scores + late) for scores in self.student])

    def popular(self, metric: Callable[..., Values], half_life: float) -> Values:
        """Return a metric of popularity alone, (1, users)."""
        return self._of(metric, self.late[half_life])[None]

    def _of(self, metric: Callable[..., Values], scores: Scores) -> Values:
        users = self.questions.histories.users.tolist()
        given = Given(scores, {user: row for row, user in enumerate(users)})
        return metric(rank(given, self.questions, depth=0), K)


def late_counts(dataset: Dataset, now: NDArray[np.float64], half_life: float) -> Scores:
    """Return log(1 + n), (moments, items), n the events of each item before a moment, each counted
    as `distilrec.engine.popular` does.
    """
    known = np.flatnonzero(dataset.items != UNKNOWN_ITEM)
    order = known[np.argsort(dataset.times[known], kind="stable")]
    times, items = dataset.times[order], dataset.items[order]
    hours, size = times // 3600, dataset.catalogue_size
    out = np.empty((len(now), size), np.float32)
    counts, hour, low, high = np.zeros(size), hours[0], 0, 0
    for place in np.argsort(now, kind="stable"):
        counts *= 0.5 ** ((now[place] // 3600 - hour) / half_life)
        hour = now[place] // 3600
        start = int(np.searchsorted(hours, hour - KEPT_HOURS + 1, side="left"))
        stop = int(np.searchsorted(times, now[place], side="left"))
        for first, last, sign in ((high, stop, 1.0), (low, min(start, stop), -1.0)):
            weights = sign * 0.5 ** ((hour - hours[first:last]) / half_life)
            counts += np.bincount(items[first:last], weights, minlength=size)
        low, high = min(start, stop), stop
        out[place] = np.log1p(np.maximum(counts, 0))
    return out


def asked_of(dataset: Dataset, part: Part, scorers: list[Scorer]) -> dict[int, Asked]:
    """Return the questions of a part by the number of events that users had before."""
    every = successive_questions(dataset, part, most=len(dataset.items))
    lengths, found = np.diff(every.histories.offsets), {}
    for length in LENGTHS:
        users = np.flatnonzero(lengths == length)
        if len(users) > MOST:
            users = np.sort(np.random.default_rng(length).choice(users, MOST, replace=False))
        of_length = every.take(users)
        histories = of_length.histories
        assert histories.now is not None
        student = np.stack([scorer.scores(histories) for scorer in scorers])
        late = {life: late_counts(dataset, histories.now, life) for life in HALF_LIVES}
        found[length] = Asked(of_length, student, late)
    return found


class Chosen(NamedTuple):
    """What was chosen on validation. best: weight by the number of events, for the same half-life;
    users: who were asked for their first event.
    """

    weight: float
    half_life: float
    popular: float
    fade: str
    best: dict[int, float]
    users: int


def chosen_on(asked: dict[int, Asked]) -> Chosen:
    """Return the best weight, half-lives and fading by NDCG@10."""
    strangers = asked[0]
    popular = max(HALF_LIVES, key=lambda life: strangers.popular(ndcg, life).mean())
    weight, half_life = max(
        product(WEIGHTS, HALF_LIVES), key=lambda pair: strangers.measured(ndcg, *pair).mean()
    )

    def mean(fade: str) -> float:
        factor = FADES[fade]
        return float(
            np.mean([one.measured(ndcg, weight * factor(n), half_life).mean() for n, one in
                     asked.items()])
        )  # fmt: skip

    best = {
        n: max(WEIGHTS, key=lambda one: of_n.measured(ndcg, one, half_life).mean())
        for n, of_n in asked.items()
    }
    users = len(strangers.questions.histories)
    return Chosen(weight, half_life, popular, max(FADES, key=mean), best, users)


def short(base: RunConfig, epochs: int) -> RunConfig:
    """Return a configuration with the default student, trained for a few epochs on half of the
    log.
    """
    training = msgspec.structs.replace(
        RunConfig(base.data).student_training, epochs=epochs, patience=epochs
    )
    return msgspec.structs.replace(
        base,
        split=SPLIT,
        student=RecurrentConfig(),
        student_training=training,
        baseline=BaselineConfig(),
    )


def trained(base: RunConfig, folder: Path, seeds: int) -> tuple[list[Scorer], Dataset]:
    """Return the students, trained where they are not, and the data set."""
    scorers: list[Scorer] = []
    for place, config in seeds_of(base, folder, seeds, share_teacher=False).items():
        print(place.name, flush=True)
        run, dataset = runs.prepare(config, place, runs.Lines())
        if dataset.why_no_times:
            raise ConfigError(f"there are no times: {dataset.why_no_times}", fix="choose another")
        runs.train_baseline(run, dataset)
        scorers.append(served(run, dataset, ALONE))
    return scorers, dataset


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="ml-1m", choices=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.epochs) < 1:
        parser.error("--seeds and --epochs are at least 1")
    base = short(read_config(ROOT / SETS[arguments.dataset]), arguments.epochs)
    make_tables(base)
    folder = arguments.folder or Path("runs") / "strangers" / arguments.dataset
    scorers, dataset = trained(base, folder, arguments.seeds)
    validation = asked_of(dataset, "validation", scorers)
    chosen = chosen_on(validation)
    by_choice = {
        f"{weight:g}, {life:g} h": float(validation[0].measured(ndcg, weight, life).mean())
        for weight, life in product(WEIGHTS, HALF_LIVES)
    }
    del validation
    test = asked_of(dataset, "test", scorers)
    lines = [
        f"{dataset.info.name}, the default student, {arguments.epochs} epochs, "
        f"{arguments.seeds} seeds; chosen on {chosen.users:,} first "
        f"events of validation: weight {chosen.weight:g}, half-life {chosen.half_life:g} h; "
        f"popularity alone {chosen.popular:g} h; fading: {chosen.fade}",
        "",
        *strangers_table(test[0], chosen),
        "",
        *lengths_table(test, chosen),
    ]
    line = json.dumps(
        {
            "bench": "strangers", "dataset": dataset.info.name, "epochs": arguments.epochs,
            "seeds": arguments.seeds, "chosen": chosen._asdict(),
            "validation": by_choice,
            "differences": msgspec.to_builtins(differences(test[0], chosen)),
        }
    )  # fmt: skip
    print("\n" + "\n".join(lines) + "\n\n" + line)
    RESULTS.mkdir(exist_ok=True)
    name = f"strangers-{arguments.dataset}"
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{name}.json").write_text(line + "\n")


def strangers_table(asked: Asked, chosen: Chosen) -> Iterator[str]:
    """Yield the figures of first events."""
    yield f"First events of {len(asked.questions.histories):,} users, test part"
    yield ""
    yield "| what answers | NDCG@10 [95%] | HR@10 [95%] |"
    yield "|---|---|---|"
    for name, values in models(asked, chosen).items():
        yield f"| {name} | {bootstrap(values(ndcg))} | {bootstrap(values(hit_rate))} |"
    yield ""
    yield "| difference | metric | mean [95%] | p |"
    yield "|---|---|---|---|"
    for one in differences(asked, chosen):
        yield f"| {one.a} - {one.b} | {one.metric} | {one.interval} | {one.p_value:.3g} |"


def models(asked: Asked, chosen: Chosen) -> dict[str, Callable[[Callable[..., Values]], Values]]:
    """Return what answers strangers, each giving (seeds, users) of a metric."""
    return {
        "student": lambda metric: asked.measured(metric, 0.0, chosen.half_life),
        "popular of late": lambda metric: np.repeat(
            asked.popular(metric, chosen.popular), len(asked.student), 0
        ),
        "both": lambda metric: asked.measured(metric, chosen.weight, chosen.half_life),
    }


def differences(asked: Asked, chosen: Chosen) -> list[Difference]:
    """Return both minus each alone, on first events."""
    found = models(asked, chosen)
    return [
        paired_difference(name, "both", found["both"](metric), other, found[other](metric))
        for name, metric in (("NDCG@10", ndcg), ("HR@10", hit_rate))
        for other in ("student", "popular of late")
    ]


def lengths_table(test: dict[int, Asked], chosen: Chosen) -> Iterator[str]:
    """Yield NDCG@10 by the number of events before, and by how the weight fades."""
    yield "NDCG@10 on test by the number n of events that a user had; on validation the best weight"
    yield ""
    yield "| n | users | student | " + " | ".join(FADES) + " | best weight on validation |"
    yield "|---|" + "---|" * (len(FADES) + 3)
    for n, asked in test.items():
        plain = asked.measured(ndcg, 0.0, chosen.half_life)
        cells = [str(n), f"{len(asked.questions.histories):,}", f"{plain.mean():.4f}"]
        for factor in FADES.values():
            values = asked.measured(ndcg, chosen.weight * factor(n), chosen.half_life)
            gain = bootstrap(values - plain)
            cells.append(f"{values.mean():.4f} ({gain.low:+.4f} to {gain.high:+.4f})")
        yield "| " + " | ".join([*cells, f"{chosen.best[n]:g}"]) + " |"


if __name__ == "__main__":
    main()
