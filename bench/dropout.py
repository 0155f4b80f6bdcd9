"""Dropout of the distilled student: labels that are soft already, and a log that may be small.

    python bench/dropout.py [--dataset lastfm] [--seeds 2] [--dropout 0 0.1 0.2] [--folder FOLDER]

The recipes are those of `bench/quality.py`: one teacher, its labels, and one distilled student for
each dropout and seed; everything else is the same. NDCG@10 on the validation part, on which the
default was chosen; the test part is not read. Resumes where it was interrupted. Prints a table and
one JSON line, and writes both into `bench/results/` (`dropout-NAME.md`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np
import torch
from quality import RESULTS, ROOT, SETS, make_tables

from distilrec import runs
from distilrec.distill.distillation import distill_model
from distilrec.errors import DataError
from distilrec.files import read_json, write_json
from distilrec.runs.config import read_config
from distilrec.training.options import RunOptions
from distilrec.training.trained import train_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="lastfm", choices=SETS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1, 0.2])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(ROOT / SETS[arguments.dataset])
    make_tables(config)
    folder = arguments.folder or Path("runs") / "dropout" / arguments.dataset
    folder = folder.absolute()
    run, dataset = runs.prepare(config, folder, runs.Lines())
    runs.train_teacher(run, dataset)
    labels = runs.teacher_labels(run, dataset)
    found: dict[str, list[float]] = {}
    for name in ("alone", *map(str, arguments.dropout)):
        found[name] = []
        for seed in range(arguments.seeds):
            place = folder / f"{name}-{seed}.json"
            if not place.is_file():
                options = RunOptions(checkpoint=folder / f"unfinished-{name}-{seed}")
                if name == "alone":
                    trained = train_model(
                        config.baseline.student or config.student,
                        dataset,
                        config.baseline.training or config.student_training,
                        seed=seed,
                        options=options,
                    )
                else:
                    trained = distill_model(
                        config.student,
                        dataset,
                        labels,
                        config.student_training,
                        msgspec.structs.replace(config.distillation, dropout=float(name)),
                        seed=seed,
                        options=options,
                    )
                write_json(place, trained.best_ndcg)
            value = read_json(place, float, error=DataError, fix=f"delete {place}")
            found[name].append(value)
            print(name, seed, round(value, 4), flush=True)
    _write_results(arguments.dataset, found)


def _write_results(name: str, found: dict[str, list[float]]) -> None:
    lines = [
        f"{name}, NDCG@10 on the validation part",
        "",
        "| student | mean | by seed |",
        "|---|---|---|",
    ]
    for which, values in found.items():
        label = "without distillation" if which == "alone" else f"distilled, dropout {which}"
        seeds = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {label} | {np.mean(values):.4f} | {seeds} |")
    table = "\n".join(lines)
    print(table)
    print(json.dumps({"dataset": name, "validation ndcg@10": found}))
    (RESULTS / f"dropout-{name}.md").write_text(table + "\n")
    (RESULTS / f"dropout-{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
