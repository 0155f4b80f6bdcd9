"""Every loss of `distilrec.distill.losses` on ML-100K: the same student, the same teacher, the same
seeds.

    python bench/losses.py [--config bench/ml-100k.toml] [--seeds 3] [--folder runs/losses]
        [--only NAME ...]

"All logits" keeps the logits of the whole catalogue, which is what a teacher in the same process
would give.

Validation figures only choose; the test figures beside them are read once, at the end. Trained
students are kept: an interrupted benchmark goes on. The teacher is that of seed 0; the hint reads
the states of its first member, the curriculum the labels of each member. Prints a table and one
JSON line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from quality import RESULTS

from distilrec import runs
from distilrec.data.dataset import Dataset
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.labels.store import LabelStore
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Scorer, questions, rank
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.runs.config import read_config
from distilrec.teachers.ensemble import single_teachers
from distilrec.teachers.teacher import Teacher
from distilrec.training.trained import TrainedModel, load_model, save_model, train_model
from distilrec.training.validation import validation_ndcg

ALONE = "no distillation"
OWN = RecurrentConfig().dropout  # with which the student is trained without distillation
LOSSES: dict[str, DistillationConfig | None] = {
    ALONE: None,
    "soft, lambda .4": DistillationConfig(0.4, dropout=OWN),
    "soft, lambda .6": DistillationConfig(0.6, dropout=OWN),
    "soft, lambda .8": DistillationConfig(0.8, dropout=OWN),
    "soft, lambda 1": DistillationConfig(1.0, dropout=OWN),
    "soft, lambda .6, no dropout": DistillationConfig(0.6),
    "soft, lambda .8, no dropout": DistillationConfig(0.8),
    "soft, lambda 1, no dropout": DistillationConfig(1.0),
    "soft, lambda .6, dropout .1": DistillationConfig(0.6, dropout=0.1),
    "soft, lambda .3, T 2": DistillationConfig(0.3, temperature=2.0, dropout=OWN),
    "hard, mu .5": DistillationConfig(0.0, hard_weight=0.5, dropout=OWN),
    "soft .6 + hard .2": DistillationConfig(0.6, hard_weight=0.2, dropout=OWN),
    "RD, .5": DistillationConfig(0.0, rd_weight=0.5, dropout=OWN),
    "RRD, 1": DistillationConfig(0.0, rrd_weight=1.0, dropout=OWN),
    "Plackett-Luce, 1": DistillationConfig(0.0, plackett_luce_weight=1.0, dropout=OWN),
    "RCE, 1.5": DistillationConfig(0.0, rce_weight=1.5, dropout=OWN),
    "UnKD, 1": DistillationConfig(0.0, unkd_weight=1.0, dropout=OWN),
    "hint, 1": DistillationConfig(0.0, hint_weight=1.0, dropout=OWN),
    "curriculum, lambda .6": DistillationConfig(0.6, curriculum=True, dropout=OWN),
    "soft .6 + RRD .3": DistillationConfig(0.6, rrd_weight=0.3, dropout=OWN),
    "soft, lambda .6, all logits": DistillationConfig(0.6, dropout=OWN),
}


class Labels:
    """The labels of each kind, extracted when they are first needed; all students use them."""

    def __init__(self, teacher: Teacher, dataset: Dataset, folder: Path) -> None:
        self._teacher, self._dataset, self._folder = teacher, dataset, folder
        self._stores: dict[str, list[LabelStore]] = {}

    def of(self, kind: str) -> list[LabelStore]:
        """Return the labels of the ensemble, of its members, with states, or with all logits."""
        if kind not in self._stores:
            self._stores[kind] = self._extracted(kind)
        return self._stores[kind]

    def _extracted(self, kind: str) -> list[LabelStore]:
        members = single_teachers(self._teacher)
        sources = {"members": members, "hint": members[:1]}.get(kind, [self._teacher])
        config = LabelConfig(
            top_k=self._dataset.info.warm_items if kind == "whole" else 100, states=kind == "hint"
        )
        return [
            extract_labels(source, self._dataset, self._folder / f"{kind}-{number}", config, seed=0)
            for number, source in enumerate(sources)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "ml-100k.toml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/losses"))
    parser.add_argument(
        "--only", nargs="*", help="only these losses, to share the work between processes"
    )
    arguments = parser.parse_args()
    config = msgspec.structs.replace(read_config(arguments.config), teacher_seed=0)
    run, dataset = runs.prepare(config, arguments.folder, runs.Lines())
    teacher = runs.train_teacher(run, dataset)
    labels = Labels(teacher, dataset, run.folder / "labels")
    students: dict[str, list[TrainedModel]] = {}
    for name in arguments.only or LOSSES:
        for seed in range(arguments.seeds):
            folder = run.folder / "students" / f"{name} seed {seed}"
            if not (folder / "model.json").is_file():
                save_model(_train(name, dataset, config, labels, seed), folder)
            students.setdefault(name, []).append(load_model(folder, dataset))
            found = students[name][-1].best_ndcg
            print(f"{name}, seed {seed}: validation {found:.4f}", flush=True)
    if not arguments.only:
        _write_results(dataset, teacher, students, arguments.seeds)


def _train(
    name: str, dataset: Dataset, config: runs.RunConfig, labels: Labels, seed: int
) -> TrainedModel:
    distillation = LOSSES[name]
    if distillation is None:
        return train_model(config.student, dataset, config.student_training, seed=seed)
    kind = (
        "members" if distillation.curriculum else "hint" if distillation.hint_weight else "ensemble"
    )
    kind = "whole" if name.endswith("all logits") else kind
    return distill_model(
        config.student, dataset, labels.of(kind), config.student_training, distillation, seed=seed
    )


def _write_results(
    dataset: Dataset, teacher: Teacher, students: dict[str, list[TrainedModel]], seeds: int
) -> None:
    """Read the test part, print the table and the JSON line, and write both."""
    test = questions(dataset, "test")

    def quality(scorer: Scorer) -> float:
        return float(ndcg(rank(scorer, test), 10).mean())

    rows: list[dict[str, Any]] = [
        {
            "loss": name,
            "validation": [trained.best_ndcg for trained in of_loss],
            "test": [quality(TorchScorer(trained.model)) for trained in of_loss],
            "seconds": float(np.mean([trained.seconds for trained in of_loss])),
        }
        for name, of_loss in students.items()
    ]
    best = max(
        (row for row in rows if row["loss"] != ALONE), key=lambda row: np.mean(row["validation"])
    )
    lines = [
        f"{dataset.info.name}, NDCG@10, {seeds} seeds; one teacher for all: validation "
        f"{validation_ndcg(teacher, dataset):.4f}, test {quality(teacher):.4f}. "
        f"Best by validation: {best['loss']}.",
        "",
        "| loss | validation, mean | by seed | test, mean | by seed | training |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -np.mean(row["validation"])):
        valid, tested = ([f"{value:.4f}" for value in row[part]] for part in ("validation", "test"))
        lines.append(
            f"| {row['loss']} | {np.mean(row['validation']):.4f} | {', '.join(valid)} | "
            f"{np.mean(row['test']):.4f} "
            f"| {', '.join(tested)} | {row['seconds']:.0f} s |"
        )
    line = json.dumps(
        {"bench": "losses", "dataset": dataset.info.name, "best": best["loss"], "rows": rows}
    )
    print("\n" + "\n".join(lines) + "\n\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"losses-{dataset.info.name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"losses-{dataset.info.name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
