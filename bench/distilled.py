"""One setting of distillation at several values, beside the student without distillation.

    python bench/distilled.py [--dataset lastfm] [--option dropout] [--values 0 0.1 0.2]
        [--seeds 2] [--config FILE] [--folder FOLDER]

--option is a number of the table `[distillation]`: dropout, soft_weight, temperature and so on. The
recipes are those of `bench/quality.py`, or --config: one teacher, its labels, and one distilled
student for each value and seed; everything else is the same. NDCG@10 on the validation part, on
which defaults are chosen; the test part is not read. Resumes where it was interrupted; the teacher,
the labels and the students without distillation in the folder serve every option. Prints a table
and one JSON line, and writes both into `bench/results/` (`distilled-OPTION-NAME.md`).
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
from distilrec.distill.losses import DistillationConfig
from distilrec.errors import DataError
from distilrec.files import read_json, write_json
from distilrec.runs.config import read_config
from distilrec.training.options import RunOptions
from distilrec.training.trained import train_model

_OPTIONS = [
    field.name
    for field in msgspec.structs.fields(DistillationConfig)
    if isinstance(field.default, float)
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="lastfm", choices=SETS)
    parser.add_argument("--option", default="dropout", choices=_OPTIONS)
    parser.add_argument("--values", type=float, nargs="+", default=[0.0, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(arguments.config or ROOT / SETS[arguments.dataset])
    make_tables(config)
    name = arguments.config.resolve().stem if arguments.config else arguments.dataset
    folder = (arguments.folder or Path("runs") / "distilled" / name).absolute()
    run, dataset = runs.prepare(config, folder, runs.Lines())
    runs.train_teacher(run, dataset)
    labels = runs.teacher_labels(run, dataset)
    found: dict[str, list[float]] = {}
    for value in (None, *arguments.values):
        which = "alone" if value is None else f"{arguments.option}-{value}"
        found[which] = []
        for seed in range(arguments.seeds):
            place = folder / f"{which}-{seed}.json"
            if not place.is_file():
                options = RunOptions(checkpoint=folder / f"unfinished-{which}-{seed}")
                if value is None:
                    trained = train_model(
                        config.baseline.student or config.student,
                        dataset,
                        config.baseline.training or config.student_training,
                        seed=seed,
                        options=options,
                    )
                else:
                    setting = {arguments.option: value}
                    trained = distill_model(
                        config.student,
                        dataset,
                        labels,
                        config.student_training,
                        msgspec.structs.replace(config.distillation, **setting),
                        seed=seed,
                        options=options,
                    )
                write_json(place, trained.best_ndcg)
            found[which].append(read_json(place, float, error=DataError, fix=f"delete {place}"))
            print(which, seed, round(found[which][-1], 4), flush=True)
    _write_results(name, arguments.option, found)


def _write_results(name: str, option: str, found: dict[str, list[float]]) -> None:
    lines = [
        f"{name}, NDCG@10 on the validation part",
        "",
        "| student | mean | by seed |",
        "|---|---|---|",
    ]
    for which, values in found.items():
        value = which.removeprefix(f"{option}-")
        label = "without distillation" if which == "alone" else f"distilled, {option} {value}"
        seeds = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {label} | {np.mean(values):.4f} | {seeds} |")
    table = "\n".join(lines)
    print(table)
    print(json.dumps({"dataset": name, "validation ndcg@10": found}))
    (RESULTS / f"distilled-{option}-{name}.md").write_text(table + "\n")
    (RESULTS / f"distilled-{option}-{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
