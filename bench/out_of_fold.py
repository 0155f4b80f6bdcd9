"""Labels of a teacher that was not trained on the users whom it labels, beside labels of one that
was (both on ML-100K by default).

    python bench/out_of_fold.py [--config FILE] [--folds 2 4] [--seeds 2]
        [--folder runs/out-of-fold]

The users are dealt into folds at random. For each fold a teacher is trained on the training rows of
the others, and the labels of a user are those of the teacher that has not learned from this user;
it reads the user's history as any teacher does. The members are those of the configuration, by
default one transformer, EASE and the linear model. Epochs and weights are chosen on the validation
part of the users that a teacher was trained on. Members in closed form remember most of their own
rows and cost seconds, so that a teacher in which only they are out of folds is measured too. How
often the item of a training row is among the ten best of its label shows what a teacher remembers
of its own training rows.

Teachers, labels and students are kept, so that an interrupted benchmark goes on. Prints a table and
one JSON line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from consistent import test_ndcg
from numpy.typing import NDArray
from quality import RESULTS

from distilrec import runs
from distilrec.data.dataset import Dataset, Histories
from distilrec.distill.distillation import distill_model
from distilrec.files import key_of
from distilrec.labels.extract import extract_labels
from distilrec.labels.store import LabelStore
from distilrec.networks.batches import Batch
from distilrec.networks.sequence import TorchScorer
from distilrec.runs.config import RunConfig, read_config
from distilrec.runs.teachers import chosen_teacher
from distilrec.teachers.build import TeacherConfig, make_teacher, with_closed_form
from distilrec.teachers.ease import EaseTeacher
from distilrec.teachers.ensemble import EnsembleTeacher
from distilrec.teachers.linear import LinearTeacher
from distilrec.teachers.teacher import Answer, Cost, Reader, Teacher, reader
from distilrec.training.trained import TrainedModel, load_model, save_model, train_model
from distilrec.training.validation import validation_ndcg

ALONE, OWN = "no distillation", "labels of the teacher of all users"


class FoldedTeacher:
    """Teachers of the folds of users: each answers about the users that it was not trained on.

    fold: (users,) int64, the position in `teachers` of the one that answers about each user.
    """

    per_user = False
    state_dim = 0

    def __init__(self, teachers: Sequence[Teacher], fold: NDArray[np.int64]) -> None:
        self.teachers, self.fold = teachers, fold
        self.identity = key_of([teacher.identity for teacher in teachers], fold.tolist())
        self.max_history = max(teacher.max_history for teacher in teachers)
        self.cost = Cost(seconds=sum(teacher.cost.seconds or 0.0 for teacher in teachers))

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        return self.read(batch, items)(window, position)

    def read(self, batch: Batch, items: int) -> Reader:
        """Let each teacher read the windows of its users, and return what answers about them."""
        fold = torch.from_numpy(self.fold)[batch.users]
        places = torch.zeros(len(fold), dtype=torch.int64)
        readers: dict[int, Reader] = {}
        for number in np.unique(fold.numpy()).tolist():
            windows = torch.nonzero(fold == number)[:, 0]
            places[windows] = torch.arange(len(windows))
            readers[number] = reader(self.teachers[number], batch.select(windows), items)

        def answer(window: torch.Tensor, position: torch.Tensor) -> Answer:
            logits = torch.empty(len(window), items)
            for number, read in readers.items():
                asked = torch.nonzero(fold[window] == number)[:, 0]
                if len(asked):
                    logits[asked] = read(places[window[asked]], position[asked]).logits
            return Answer(logits)

        return answer

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        fold = self.fold[histories.users]
        parts = {
            number: self.teachers[number].scores(histories.take(np.flatnonzero(fold == number)))
            for number in np.unique(fold)
        }
        scores = np.empty((len(fold), next(iter(parts.values())).shape[1]), np.float32)
        for number, part in parts.items():
            scores[fold == number] = part
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/out-of-fold"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = (
        RunConfig(data=runs.DataConfig(dataset="ml-100k"))
        if arguments.config is None
        else read_config(arguments.config)
    )
    run, dataset = runs.prepare(config, arguments.folder, runs.Lines())
    teacher, training = chosen_teacher(config, dataset.info)
    members = with_closed_form(teacher, config.closed_form, dataset.info.warm_items)
    own = make_teacher(members, dataset, training, run.folder / "teacher", seed=0)
    teachers: dict[str, Teacher] = {OWN: own}
    for folds in arguments.folds:
        fold = np.random.default_rng(0).permutation(dataset.users) % folds
        place = run.folder / f"folds-{folds}"
        name = f"labels out of {folds} folds"
        teachers[name] = _folded(members, config, dataset, fold, place)
        name = f"closed-form members out of {folds} folds, network of all users"
        teachers[name] = _closed_form_folded(teachers[OWN], config, dataset, fold, place / "closed")
    rows = {ALONE: _of_students(config, dataset, None, run.folder / ALONE, arguments.seeds)}
    for name, teacher in teachers.items():
        labels = extract_labels(
            teacher, dataset, run.folder / f"{name}-store", config.labels, seed=0
        )
        rows[name] = {
            "teacher": [validation_ndcg(teacher, dataset), test_ndcg(teacher, dataset)],
            "found": _found(labels, dataset),
            "teacher seconds": teacher.cost.seconds,
            **_of_students(config, dataset, labels, run.folder / name, arguments.seeds),
        }
        print(name, rows[name], flush=True)
    _write_results(dataset, rows)


def _folded(
    model: TeacherConfig,
    config: RunConfig,
    dataset: Dataset,
    fold: NDArray[np.int64],
    folder: Path,
) -> FoldedTeacher:
    _, training = chosen_teacher(config, dataset.info)
    teachers = []
    for number in range(fold.max() + 1):
        others = dataset.with_training_users(fold != number)
        place = folder / f"fold-{number}"
        teachers.append(make_teacher(model, others, training, place, seed=0))
    return FoldedTeacher(teachers, fold)


def _closed_form_folded(
    teacher: Teacher, config: RunConfig, dataset: Dataset, fold: NDArray[np.int64], folder: Path
) -> Teacher:
    """Return the same ensemble with the same weights, its members in closed form out of folds."""
    if not isinstance(teacher, EnsembleTeacher):
        raise SystemExit("the teacher has no members in closed form")
    members = [
        _folded(member.config, config, dataset, fold, folder / f"member-{number}")
        if isinstance(member, EaseTeacher | LinearTeacher)
        else member
        for number, member in enumerate(teacher.members)
    ]
    return EnsembleTeacher(members, teacher.weights)


def _of_students(
    config: RunConfig, dataset: Dataset, labels: LabelStore | None, folder: Path, seeds: int
) -> dict[str, Any]:
    """Train the students of some labels, or without labels, and read both parts."""
    students = []
    for seed in range(seeds):
        place = folder / f"seed-{seed}"
        if not (place / "model.json").is_file():
            save_model(_student(config, dataset, labels, seed), place)
        students.append(load_model(place, dataset))
    return {
        "validation": [student.best_ndcg for student in students],
        "test": [test_ndcg(TorchScorer(student.model), dataset) for student in students],
    }


def _student(
    config: RunConfig, dataset: Dataset, labels: LabelStore | None, seed: int
) -> TrainedModel:
    training = config.student_training
    if labels is None:
        return train_model(config.student, dataset, training, seed=seed)
    return distill_model(config.student, dataset, labels, training, config.distillation, seed=seed)


def _found(labels: LabelStore, dataset: Dataset) -> float:
    """Return the share of training rows whose item is among the ten best of their labels."""
    rows = dataset.training_rows()
    sample = np.sort(np.random.default_rng(0).choice(rows, min(20_000, len(rows)), replace=False))
    stored = labels.at(torch.from_numpy(sample), torch.device("cpu"))
    items, logits = stored.top_items, stored.top_logits
    best = items.gather(1, logits.argsort(1, descending=True)[:, :10])
    wanted = torch.from_numpy(dataset.items[sample].astype(np.int64))[:, None]
    return float((best == wanted).any(1).float().mean())


def _write_results(dataset: Dataset, rows: dict[str, dict[str, Any]]) -> None:
    """Print the table and the JSON line, and write both into `bench/results/`."""
    lines = [
        f"{dataset.info.name}, NDCG@10",
        "",
        "| student | teacher: validation, test | next item of training rows among its ten best "
        "| teacher's training | validation, mean | by seed | test, mean | by seed |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(name, row) for name, row in rows.items()),
    ]
    text = "\n".join(lines) + "\n"
    found = json.dumps({"bench": "out-of-fold", "dataset": dataset.info.name, "students": rows})
    print(text + "\n" + found)
    (RESULTS / f"out-of-fold-{dataset.info.name}.md").write_text(text)
    (RESULTS / f"out-of-fold-{dataset.info.name}.json").write_text(found + "\n")


def _line(name: str, row: dict[str, Any]) -> str:
    teacher = ["", "", ""]
    if "teacher" in row:
        validation, test = row["teacher"]
        seconds = f"{row['teacher seconds']:.0f} s"
        teacher = [f"{validation:.4f}, {test:.4f}", f"{row['found']:.1%}", seconds]
    students = [
        f"{np.mean(row[part]):.4f} | {', '.join(f'{value:.4f}' for value in row[part])}"
        for part in ("validation", "test")
    ]
    return f"| {name} | {' | '.join(teacher)} | {' | '.join(students)} |"


if __name__ == "__main__":
    main()
