"""What [targets] changes on ratings: how well films that people like are found, and how often films
that they dislike are shown.

    python bench/dislikes.py [--dataset ml-1m] [--seeds 3] [--distil] [--negative-weight 0 1]
        [--epochs 40] [--folder runs/dislikes]

Ratings of 4 and more are targets, those up to 2 are negative. The last fifth of each user's ratings
is for test, a tenth before it for validation, and every student learns from the same rows before:
one without [targets], which learns to predict every rating, as all students did before; one whose
targets are those of [targets], for each weight of the term of negative events, of which 0 is
none. All are asked the same questions after the same rows. NDCG@10 of the targets; disliked@10:
the share of the ten films that a user rates up to 2 later. With --distil each has a teacher and
labels of its own. What is trained is kept in the folder, and used again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec import prepare_dataset
from distilrec.data import DATASETS, EventRole, Targets, fetch_dataset
from distilrec.data.dataset import Dataset, Histories
from distilrec.distill.distillation import distill_model
from distilrec.labels.extract import extract_labels
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Questions, questions, rank
from distilrec.measure.statistics import bootstrap, paired_difference
from distilrec.networks.sequence import TorchScorer
from distilrec.runs.config import DataConfig, RunConfig
from distilrec.runs.teachers import chosen_teacher
from distilrec.teachers.build import make_teacher
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import TrainedModel, load_model, save_model, train_model

RESULTS = Path(__file__).parent / "results"
TEST, VALIDATION = 0.2, 0.1  # shares of each user's ratings
K = 10
RATING = 1  # the number of the type "interaction", which all ratings have without [targets]
Values = NDArray[np.float64]


def prepared(name: str, negative_weight: float) -> Dataset:
    """Return a data set with [targets], split by shares of each user's rows."""
    folder = fetch_dataset(name, print)
    whole = prepare_dataset(
        folder / "interactions.csv",
        DATASETS[name].schema,
        users=folder / "users.csv",
        items=folder / "items.csv",
        name=name,
        derived_features=False,  # they would count rows that are for test here
        targets=Targets((EventRole(target_from=4, negative_to=2),), negative_weight),
    )
    sizes, stops = np.diff(whole.offsets), whole.offsets[1:]
    test = np.round(TEST * sizes).astype(np.int64)
    validation = np.round(VALIDATION * sizes).astype(np.int64)
    return replace(whole, train_end=stops - test - validation, validation_end=stops - test)


def without_targets(dataset: Dataset) -> Dataset:
    """Return the same rows, in which every rating is to be predicted."""
    info = msgspec.structs.replace(dataset.info, targets=None)
    return replace(dataset, info=info, events=np.full_like(dataset.events, RATING))


class Plain:
    """Asks a student that knows a single type of events."""

    def __init__(self, scorer: TorchScorer) -> None:
        self._scorer = scorer

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items)."""
        return self._scorer.scores(
            replace(histories, events=np.full_like(histories.events, RATING))
        )


@dataclass(frozen=True)
class Variant:
    """One way to train a student."""

    name: str
    dataset: Dataset
    folder: Path
    config: RunConfig
    distil: bool

    def student(self, seed: int) -> TrainedModel:
        """Return a student, trained on first use."""
        folder, config = self.folder / f"student-{seed}", self.config
        if not (folder / "model.json").is_file():
            options = RunOptions(checkpoint=self.folder / f"unfinished-{seed}")
            if self.distil:
                trained = self._distilled(seed, options)
            else:
                trained = train_model(
                    config.student,
                    self.dataset,
                    config.student_training,
                    seed=seed,
                    options=options,
                )
            save_model(trained, folder)
        return load_model(folder, self.dataset)

    def _distilled(self, seed: int, options: RunOptions) -> TrainedModel:
        config, data = self.config, self.dataset
        chosen, training = chosen_teacher(config, data.info)
        teacher = make_teacher(chosen, data, training, self.folder / "teacher", seed=0)
        labels = extract_labels(teacher, data, self.folder / "labels", config.labels, seed=0)
        return distill_model(
            config.student,
            data,
            labels,
            config.student_training,
            config.distillation,
            seed=seed,
            options=options,
        )

    def lists(self, asked: Questions, seed: int) -> tuple[Values, NDArray[np.int32]]:
        """Return NDCG@10 of each user, and the ten best items, (users, 10)."""
        scorer = TorchScorer(self.student(seed).model)
        ranking = rank(Plain(scorer) if self.dataset.roles is None else scorer, asked, K)
        return ndcg(ranking, K), ranking.top


def disliked_later(dataset: Dataset, users: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """Return the items of the test part that each of these users rates up to 2."""
    roles = dataset.roles
    assert roles is not None
    found = []
    for user in users:
        rows = slice(dataset.validation_end[user], dataset.offsets[user + 1])
        found.append(dataset.items[rows][roles.negative[dataset.events[rows]]])
    return found


def shown(top: NDArray[np.int32], disliked: Sequence[NDArray[np.int32]]) -> Values:
    """Return disliked@10 of each user who dislikes something later, (users,)."""
    pairs = zip(top, disliked, strict=True)
    return np.array([np.isin(best, items).mean() for best, items in pairs if len(items)])


def variants(arguments: argparse.Namespace) -> list[Variant]:
    """Return the students that are compared, the one without [targets] first."""
    config = RunConfig(DataConfig(dataset=arguments.dataset), closed_form=False)
    if arguments.epochs is not None:
        few = {"epochs": arguments.epochs, "patience": arguments.epochs}
        config = msgspec.structs.replace(
            config,
            student_training=msgspec.structs.replace(config.student_training, **few),
            teacher_training=TrainingConfig(**few),
        )
    epochs = config.student_training.epochs
    folder = arguments.folder / (
        f"{arguments.dataset}-{epochs}-{'distilled' if arguments.distil else 'alone'}"
    )
    weights = list(dict.fromkeys(arguments.negative_weight))
    data = {weight: prepared(arguments.dataset, weight) for weight in weights}
    plain = without_targets(data[weights[0]])
    names = {
        weight: f"[targets], negative_weight {weight:g}" if weight else "[targets], no term"
        for weight in weights
    }
    return [
        Variant("without [targets]", plain, folder / "without", config, arguments.distil),
        *(
            Variant(names[weight], data[weight], folder / f"{weight:g}", config, arguments.distil)
            for weight in weights
        ),
    ]


def measured(
    compared: Sequence[Variant], seeds: int
) -> tuple[dict[str, Values], dict[str, Values], Questions]:
    """Return NDCG@10 and disliked@10 of each variant, (seeds, users) each, and what was asked."""
    with_targets = compared[-1].dataset
    asked = questions(with_targets, "test")
    disliked = disliked_later(with_targets, asked.histories.users)
    quality, rates = {}, {}
    for variant in compared:
        answers = [variant.lists(asked, seed) for seed in range(seeds)]
        quality[variant.name] = np.stack([values for values, _ in answers])
        rates[variant.name] = np.stack([shown(top, disliked) for _, top in answers])
        print(f"{variant.name}: {bootstrap(quality[variant.name])}", flush=True)
    return quality, rates, asked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="ml-1m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--negative-weight", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/dislikes"))
    arguments = parser.parse_args()
    compared = variants(arguments)
    quality, rates, asked = measured(compared, arguments.seeds)
    base = compared[0].name
    rows, records = [], []
    for name in quality:
        pairs = [("ndcg@10", quality), ("disliked@10", rates)]
        gains = [
            paired_difference(metric, name, values[name], base, values[base])
            for metric, values in pairs
        ]
        cells = [str(bootstrap(values[name])) for _, values in pairs]
        cells += [
            f"{gain.interval.mean:+.4f} [{gain.interval.low:+.4f}, {gain.interval.high:+.4f}]"
            if name != base
            else ""
            for gain in gains
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        records.append(
            {
                "name": name,
                "ndcg_by_seed": quality[name].mean(1).tolist(),
                "disliked_by_seed": rates[name].mean(1).tolist(),
                "against_without": msgspec.to_builtins(gains),
            }
        )
    kind = "distilled" if arguments.distil else "alone"
    lines = [
        f"{arguments.dataset}, last fifth of each user's ratings, {len(asked.histories):,} users "
        f"({rates[base].shape[1]:,} of whom dislike something later), {arguments.seeds} seeds, "
        f"students {'with' if arguments.distil else 'without'} distillation",
        "",
        "| student | NDCG@10 of targets | disliked@10 | NDCG@10 minus without | disliked@10 minus "
        "without |",
        "|---|---|---|---|---|",
        *rows,
    ]
    line = json.dumps({"bench": "dislikes", "dataset": arguments.dataset, "kind": kind,
                       "seeds": arguments.seeds, "rows": records})  # fmt: skip
    print("\n".join(lines) + "\n" + line)
    RESULTS.mkdir(exist_ok=True)
    name = f"dislikes-{arguments.dataset}-{kind}"
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
