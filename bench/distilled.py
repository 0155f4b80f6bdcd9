"""One setting of distillation at several values, beside the student without distillation.

    python bench/distilled.py [--dataset lastfm] [--option dropout] [--values 0 0.1 0.2]
        [--alone-dropout 0.1 0.3] [--seeds 2] [--config FILE] [--folder FOLDER]

--option is a number of the table `[distillation]`: dropout, soft_weight, temperature and so on. The
recipes are those of `bench/quality.py`, or --config: one teacher, its labels, and one distilled
student for each value and seed; everything else is the same. --alone-dropout trains the student
without distillation with other dropouts as well, so that it is searched as far. NDCG@10 on the
validation part, on which defaults are chosen; the test part is not read. Resumes where it was
interrupted; the teacher, the labels and the students without distillation in the folder serve every
option. Prints a table and one JSON line, and writes both into `bench/results/`
(`distilled-OPTION-NAME.md`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from quality import RESULTS, ROOT, SETS, make_tables

from distilrec import runs
from distilrec.distill.distillation import distill_model
from distilrec.distill.losses import DistillationConfig
from distilrec.errors import DataError
from distilrec.files import read_json, write_json
from distilrec.networks.student import StudentSettings
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
    parser.add_argument("--alone-dropout", type=float, nargs="*", default=[])
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
    student: StudentSettings = config.baseline.student or config.student
    settings: list[tuple[str, StudentSettings | DistillationConfig]] = [("alone", student)]
    for value in arguments.alone_dropout:
        settings.append((f"alone-dropout-{value}", _with(student, "dropout", value)))
    for value in arguments.values:
        setting = _with(config.distillation, arguments.option, value)
        settings.append((f"{arguments.option}-{value}", setting))
    found: dict[str, list[float]] = {}
    for which, setting in settings:
        found[which] = []
        for seed in range(arguments.seeds):
            place = folder / f"{which}-{seed}.json"
            if not place.is_file():
                options = RunOptions(checkpoint=folder / f"unfinished-{which}-{seed}")
                if isinstance(setting, DistillationConfig):
                    trained = distill_model(
                        config.student,
                        dataset,
                        labels,
                        config.student_training,
                        setting,
                        seed=seed,
                        options=options,
                    )
                else:
                    training = config.baseline.training or config.student_training
                    trained = train_model(setting, dataset, training, seed=seed, options=options)
                write_json(place, trained.best_ndcg)
            found[which].append(read_json(place, float, error=DataError, fix=f"delete {place}"))
            print(which, seed, round(found[which][-1], 4), flush=True)
    _write_results(name, arguments.option, found)


def _with(settings: msgspec.Struct, option: str, value: float) -> Any:
    return msgspec.structs.replace(settings, **{option: value})


def _write_results(name: str, option: str, found: dict[str, list[float]]) -> None:
    lines = [
        f"{name}, NDCG@10 on the validation part; alone is without distillation",
        "",
        "| student | mean | by seed |",
        "|---|---|---|",
    ]
    for which, values in found.items():
        seeds = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {which} | {np.mean(values):.4f} | {seeds} |")
    table = "\n".join(lines)
    print(table)
    print(json.dumps({"dataset": name, "validation ndcg@10": found}))
    (RESULTS / f"distilled-{option}-{name}.md").write_text(table + "\n")
    (RESULTS / f"distilled-{option}-{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
