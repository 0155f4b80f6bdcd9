"""How often the item that came next, or that the same user also had, is among ten similar items.

    python bench/similar.py [--run runs/ml-100k] [--part test] [--draws 5]

Every held-out event of a user is a question three times: for the item before it ("next item"), for
an item of the user's history that is drawn at random ("co-purchase"), and for three of these
together ("cart"). A list has ten items, none of which was asked about; items that the user has had
may be in it, since the page of an item does not know who reads it. The student answers through its
bundle, by likeness alone, by `similar` as it is, and as if the items were the whole history of a
user (`recommend`); ItemKNN and EASE by the sum of their weights, with parameters chosen on
validation. Prints a table and one JSON line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilrec import load
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories, load_dataset
from distilrec.engine.recommender import Recommender
from distilrec.measure.ranking import Scorer, questions
from distilrec.measure.statistics import Interval, bootstrap
from distilrec.report.baselines import fitted_baselines
from distilrec.runs.folder import open_run

RESULTS = Path(__file__).parent / "results"
K, CART = 10, 3
Items = NDArray[np.int32]
Lists = Callable[[Items], Items]
"""Gives a list for the items asked about, all as positions in the catalogue."""


class Question(NamedTuple):
    """The items asked about and the held-out items, one of which should be in the list."""

    user: int
    asked: Items
    right: Items


class Known(NamedTuple):
    """A student with its items and their positions."""

    recommender: Recommender
    ids: list[str]
    places: Mapping[str, int]


def made_questions(dataset: Dataset, part: str, draws: int) -> dict[str, list[Question]]:
    """Return the questions of each column."""
    rng = np.random.default_rng(0)
    of_part = questions(dataset, "validation" if part == "validation" else "test")
    found: dict[str, list[Question]] = {"next item": [], "co-purchase": [], "cart": []}
    for user in range(len(of_part.histories)):
        history = of_part.histories.of(user)
        right = of_part.targets[of_part.offsets[user] : of_part.offsets[user + 1]]
        right = right[right != UNKNOWN_ITEM]
        if not len(history) or not len(right):
            continue
        found["next item"].append(Question(user, history[-1:], right[:1]))
        different = np.unique(history)
        for _ in range(draws):
            one, some = (
                rng.choice(different, min(number, len(different)), replace=False)
                for number in (1, CART)
            )
            found["co-purchase"].append(Question(user, one, right))
            found["cart"].append(Question(user, some, right))
    return found


def by_scores(scorer: Scorer, asked: Items) -> Items:
    number = len(asked)
    history = Histories(
        np.zeros(1, np.int64), np.array([0, number]), asked, np.ones(number, np.int32)
    )
    scores = scorer.scores(history)[0].copy()
    scores[asked] = -np.inf
    return np.argsort(-scores, kind="stable")[:K].astype(np.int32)


def by_likeness(known: Known, popularity: float, asked: Items) -> Items:
    recommender, ids, places = known
    best, _ = recommender.most_similar([ids[n] for n in asked], K, popularity=popularity)
    return np.array([places[item] for item in best], np.int32)


def by_history(known: Known, asked: Items) -> Items:
    recommender, ids, places = known
    user, event_type = "of the benchmark", recommender.manifest.event_types[-1]
    recommender.forget(user)
    recommender.update(
        [{"user_id": user, "item_id": ids[n], "event_type": event_type} for n in asked]
    )
    best, _ = recommender.best(user, K)
    return np.array([places[item] for item in best], np.int32)


def models(dataset: Dataset, bundle: Path) -> dict[str, Lists]:
    recommender = load(bundle)
    ids = recommender.item_ids
    places = {item: place for place, item in enumerate(ids)}
    known = Known(recommender, ids, places)
    found = {name: partial(by_scores, scorer) for name, scorer in fitted_baselines(dataset).items()}
    return {
        **found,
        "student, similar with popularity 0": partial(by_likeness, known, 0.0),
        "student, similar": partial(by_likeness, known, 0.1),
        "student, recommend for these items": partial(by_history, known),
    }


def hit_rate(lists: Lists, asked: list[Question]) -> Interval:
    """Return the share of questions with a hit, with the interval over users."""
    hits: dict[int, list[bool]] = {}
    for question in asked:
        found = lists(question.asked)
        hits.setdefault(question.user, []).append(bool(np.isin(question.right, found).any()))
    return bootstrap(np.array([[np.mean(of_user) for of_user in hits.values()]]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/ml-100k"))
    parser.add_argument("--bundle", type=Path, help="another one than that of the run")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    dataset, bundle = load_dataset(run.places.data), arguments.bundle or run.bundle
    asked = made_questions(dataset, arguments.part, arguments.draws)
    rows = {
        name: {column: hit_rate(lists, of_column) for column, of_column in asked.items()}
        for name, lists in models(dataset, bundle).items()
    }
    text = "\n".join(
        [
            f"{dataset.info.name}, {arguments.part} part, {len(asked['next item']):,} users, "
            f"share of lists of {K} with a hit [95%]",
            "",
            f"| model | {' | '.join(asked)} |",
            "|---|" + "---|" * len(asked),
            *(f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in rows.items()),
        ]
    )
    means = {name: {c: value.mean for c, value in row.items()} for name, row in rows.items()}
    line = json.dumps({"dataset": dataset.info.name, "part": arguments.part, "hit rate": means})
    print(text + "\n\n" + line)
    if arguments.part == "test":
        RESULTS.joinpath(f"similar-{dataset.info.name}.md").write_text(text + "\n")
        RESULTS.joinpath(f"similar-{dataset.info.name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
