"""What windows, labels and altered histories are worth on ML-100K: the same student, the same
teacher, one thing changed at a time.

    python bench/consistent.py [--config bench/ml-100k.toml] [--seeds 3] [--folder runs/consistent]
        [--only NAME ...]

"Stored" labels are extracted once; with "asked" the teacher answers about the window that the
student sees. Dropout is the student's own without distillation, none with it; the epoch is chosen
on validation, the test figures are read once, at the end. Trained students are kept: an interrupted
benchmark goes on, seed by seed, and what is there so far is written. Prints a table and one JSON
line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from quality import RESULTS

from distilrec import runs
from distilrec.data.dataset import Dataset
from distilrec.distill.altered import AlteredConfig
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.distill.sources import AskedTeacher
from distilrec.labels.extract import extract_labels
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Scorer, questions, rank
from distilrec.networks.sequence import TorchScorer
from distilrec.runs.config import RunConfig, read_config
from distilrec.teachers.teacher import Teacher
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import TrainedModel, load_model, save_model, train_model
from distilrec.training.validation import validation_ndcg


class Cell(NamedTuple):
    """One row of the table. window, context: of the training; distillation: None for none."""

    window: int
    context: float
    distillation: DistillationConfig | None


LONG, SHORT = (0, 0.0), (100, 0.5)
STORED = DistillationConfig()
FEW = DistillationConfig(labels="asked", all_logits=False)
ALL = DistillationConfig(labels="asked")
ALTERED = DistillationConfig(labels="asked", altered=AlteredConfig(share=0.5))
CELLS = {
    "windows of 200, no distillation": Cell(*LONG, None),
    "windows of 200, stored": Cell(*LONG, STORED),
    "windows of 100 with context, no distillation": Cell(*SHORT, None),
    "windows of 100 with context, stored": Cell(*SHORT, STORED),
    "windows of 100 with context, asked, all logits": Cell(*SHORT, ALL),
    "windows of 100 with context, asked, 100 best and 100 drawn": Cell(*SHORT, FEW),
    "windows of 100 with context, asked, all logits, altered": Cell(*SHORT, ALTERED),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "ml-100k.toml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/consistent"))
    parser.add_argument("--only", nargs="*", help="only these cells, by name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = msgspec.structs.replace(read_config(arguments.config), teacher_seed=0)
    run, dataset = runs.prepare(config, arguments.folder, runs.Lines())
    teacher = runs.train_teacher(run, dataset)
    for seed in range(arguments.seeds):
        for name in arguments.only or CELLS:
            folder = run.folder / "students" / f"{name} seed {seed}"
            if not (folder / "model.json").is_file():
                save_model(_train(CELLS[name], dataset, config, teacher, run, seed), folder)
            found = load_model(folder, dataset).best_ndcg
            print(f"{name}, seed {seed}: validation {found:.4f}", flush=True)
    _write_results(dataset, teacher, run.folder / "students", arguments.seeds)


def _train(
    cell: Cell, dataset: Dataset, config: RunConfig, teacher: Teacher, run: runs.Run, seed: int
) -> TrainedModel:
    training: TrainingConfig = msgspec.structs.replace(
        config.student_training, window=cell.window, context=cell.context
    )
    if cell.distillation is None:
        return train_model(config.student, dataset, training, seed=seed)
    if cell.distillation.labels == "asked":
        labels = AskedTeacher(teacher, dataset, config.labels)
    else:
        labels = extract_labels(teacher, dataset, run.places.labels, config.labels, seed=0)
    return distill_model(config.student, dataset, labels, training, cell.distillation, seed=seed)


def test_ndcg(scorer: Scorer, dataset: Dataset) -> float:
    """Return NDCG@10 on the test part."""
    return float(ndcg(rank(scorer, questions(dataset, "test")), 10).mean())


def _write_results(dataset: Dataset, teacher: Teacher, folder: Path, seeds: int) -> None:
    """Read the test part, print the table and the JSON line, and write both."""
    rows: dict[str, Any] = {}
    for name in CELLS:
        places = [folder / f"{name} seed {seed}" for seed in range(seeds)]
        students = [load_model(p, dataset) for p in places if (p / "model.json").is_file()]
        if students:
            rows[name] = {
                "validation": [student.best_ndcg for student in students],
                "test": [test_ndcg(TorchScorer(student.model), dataset) for student in students],
                "seconds": [student.seconds for student in students],
                "asked": [student.seconds_asked for student in students],
                "best epoch": [student.record.best_epoch for student in students],
            }
    of_teacher = {
        "validation": validation_ndcg(teacher, dataset), "test": test_ndcg(teacher, dataset)
    }  # fmt: skip
    lines = [
        f"{dataset.info.name}, NDCG@10; one teacher for all: validation "
        f"{of_teacher['validation']:.4f}, test {of_teacher['test']:.4f}",
        "",
        "| student | validation, mean | by seed | test, mean | by seed | training | asked |",
        "|---|---|---|---|---|---|---|",
        *(_line(name, row) for name, row in rows.items()),
    ]
    text = "\n".join(lines) + "\n"
    found = json.dumps({"dataset": dataset.info.name, "teacher": of_teacher, "students": rows})
    print(text + "\n" + found)
    (RESULTS / f"consistent-{dataset.info.name}.md").write_text(text)
    (RESULTS / f"consistent-{dataset.info.name}.json").write_text(found + "\n")


def _line(name: str, row: dict[str, list[float]]) -> str:
    figures = [
        f"{np.mean(row[part]):.4f} | {', '.join(f'{value:.4f}' for value in row[part])}"
        for part in ("validation", "test")
    ]
    asked = f"{np.mean(row['asked']):.0f} s" if any(row["asked"]) else ""
    return f"| {name} | {' | '.join(figures)} | {np.mean(row['seconds']):.0f} s | {asked} |"


if __name__ == "__main__":
    main()
