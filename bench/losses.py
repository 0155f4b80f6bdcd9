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

import msgspec
import numpy as np
from quality import RESULTS

from distilrec import runs
from distilrec.data.dataset import Dataset
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.labels.store import LabelStore
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.runs.config import read_config
from distilrec.teachers.build import single_teachers
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
    members = single_teachers(teacher)
    stores: dict[str, list[LabelStore]] = {}

    def labels(kind: str) -> list[LabelStore]:
        """Extract the labels when they are first needed; all students use them."""
        if kind not in stores:
            sources = {
                "ensemble": [teacher],
                "members": members,
                "hint": members[:1],
                "whole": [teacher],
            }[kind]
            kept = LabelConfig(
                top_k=dataset.info.warm_items if kind == "whole" else 100, states=kind == "hint"
            )
            stores[kind] = [
                extract_labels(
                    source,
                    dataset,
                    run.folder / "labels" / f"{kind}-{n}",
                    kept,
                    seed=0,
                )
                for n, source in enumerate(sources)
            ]
        return stores[kind]

    found: dict[str, list[TrainedModel]] = {}
    for name in arguments.only or LOSSES:
        for seed in range(arguments.seeds):
            folder = run.folder / "students" / f"{name} seed {seed}"
            if not (folder / "model.json").is_file():
                save_model(_train(name, dataset, config, labels, seed), folder)
            found.setdefault(name, []).append(load_model(folder, dataset))
            print(f"{name}, seed {seed}: validation {found[name][-1].best_ndcg:.4f}", flush=True)
    if arguments.only:
        return

    asked = questions(dataset, "test")

    def test(scorer: object) -> float:
        return float(ndcg(rank(scorer, asked), 10).mean())  # type: ignore[arg-type]

    rows = []
    for name, students in found.items():
        rows.append(
            {
                "loss": name,
                "validation": [each.best_ndcg for each in students],
                "test": [test(TorchScorer(each.model)) for each in students],
                "seconds": float(np.mean([each.seconds for each in students])),
            }
        )
    best = max(
        (row for row in rows if row["loss"] != ALONE), key=lambda row: np.mean(row["validation"])
    )
    lines = [
        f"{dataset.info.name}, NDCG@10, {arguments.seeds} seeds; one teacher for all: validation "
        f"{validation_ndcg(teacher, dataset):.4f}, test {test(teacher):.4f}. Best by validation: "
        f"{best['loss']}.",
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


def _train(
    name: str, dataset: Dataset, config: runs.RunConfig, labels: object, seed: int
) -> TrainedModel:
    distillation = LOSSES[name]
    if distillation is None:
        return train_model(config.student, dataset, config.student_training, seed=seed)
    kind = (
        "members" if distillation.curriculum else "hint" if distillation.hint_weight else "ensemble"
    )
    kind = "whole" if name.endswith("all logits") else kind
    return distill_model(
        config.student, dataset, labels(kind), config.student_training, distillation, seed=seed
    )  # type: ignore[operator]


if __name__ == "__main__":
    main()
