"""Kinds of teachers beside each other: which network the default teacher should be.

    python bench/teachers.py [--dataset filmtrust] [--only NAME ...] [--seeds 2] [--folder FOLDER]

The data sets and their recipes are those of `bench/quality.py`, of which only the data are used:
each candidate (the table CANDIDATES) has the same settings on every log. NDCG@10 on the validation
part of the best network alone, of the ensemble with EASE and the linear transition model, which
join a teacher by default, and of the student of the recipe that learns from that ensemble (not with
--no-students); the test part is not read. Seconds are those in which the networks were trained, on
one thread. Resumes where it was interrupted. Prints a table and one JSON line, and writes
both into `bench/results/` (`teachers-NAME.md`).
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
from distilrec.data.dataset import Dataset
from distilrec.distill.distillation import distill_model
from distilrec.errors import DataError
from distilrec.files import read_json, write_json
from distilrec.labels.extract import extract_labels
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.runs.config import RunConfig, read_config
from distilrec.teachers.build import (
    EnsembleConfig,
    MemberConfig,
    TeacherConfig,
    make_teacher,
    with_closed_form,
)
from distilrec.teachers.ensemble import single_teachers
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.validation import validation_ndcg

_USUAL = TrainingConfig()
_FAST = msgspec.structs.replace(_USUAL, learning_rate=4e-3)
_RECURRENT = RecurrentConfig(dim=64, scales=4, dropout=0.3)
_TRANSFORMER, _ONE = MemberConfig(TransformerConfig()), MemberConfig(_RECURRENT, _FAST)
_THREE = MemberConfig(_RECURRENT, _FAST, seeds=3)
CANDIDATES: dict[str, tuple[TeacherConfig, TrainingConfig]] = {
    "transformer": (TransformerConfig(), _USUAL),
    "recurrent-64": (_RECURRENT, _USUAL),
    "recurrent-64-fast": (_RECURRENT, _FAST),
    "recurrent-96": (RecurrentConfig(dim=96, scales=4, dropout=0.3), _USUAL),
    "both": (EnsembleConfig((_TRANSFORMER, _ONE)), _USUAL),
    "three-recurrent": (EnsembleConfig((_THREE,)), _USUAL),
    "both-three": (EnsembleConfig((_TRANSFORMER, _THREE)), _USUAL),
}


class Found(msgspec.Struct, frozen=True):
    """What one training gave. seconds: of its networks; epochs: those that are kept; student:
    None where there is none.
    """

    alone: float
    joined: float
    seconds: float
    epochs: list[int]
    student: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="filmtrust", choices=SETS)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--no-students", action="store_true")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(ROOT / SETS[arguments.dataset])
    make_tables(config)
    folder = (arguments.folder or Path("runs") / "teachers" / arguments.dataset).absolute()
    _, dataset = runs.prepare(config, folder, runs.Lines())
    found: dict[str, list[Found]] = {}
    for name in arguments.only:
        found[name] = []
        for seed in range(arguments.seeds):
            place = folder / f"{name}-{seed}.json"
            if not place.is_file():
                one = _trained(config, dataset, folder, name, seed, not arguments.no_students)
                write_json(place, one)
            found[name].append(read_json(place, Found, error=DataError, fix=f"delete {place}"))
            print(name, seed, found[name][-1], flush=True)
    _write_results(arguments.dataset, found)


def _trained(
    config: RunConfig, dataset: Dataset, folder: Path, name: str, seed: int, student: bool
) -> Found:
    candidate, training = CANDIDATES[name]
    teacher = make_teacher(
        with_closed_form(candidate, None, dataset.info.warm_items),
        dataset,
        training,
        folder / f"teacher-{name}-{seed}",
        seed=seed,
    )
    networks = [
        member.trained for member in single_teachers(teacher) if isinstance(member, ModelTeacher)
    ]
    joined, learned = validation_ndcg(teacher, dataset), None
    if student:
        labels = extract_labels(
            teacher,
            dataset,
            folder / f"labels-{name}-{seed}",
            config.labels,
            seed=seed,
            mask_seen=config.student_training.mask_seen,
        )
        learned = distill_model(
            config.student,
            dataset,
            [labels],
            config.student_training,
            config.distillation,
            seed=seed,
            options=RunOptions(checkpoint=folder / f"unfinished-student-{name}-{seed}"),
        ).best_ndcg
    return Found(
        max(network.best_ndcg for network in networks),
        joined,
        sum(network.seconds for network in networks),
        [network.record.best_epoch for network in networks],
        learned,
    )


def _write_results(name: str, found: dict[str, list[Found]]) -> None:
    lines = [
        f"{name}, NDCG@10 on the validation part; joined is with EASE and the linear "
        "model, student what learns from that",
        "",
        "| teacher | alone | by seed | joined | by seed | student | by seed | epochs | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for which, seeds in found.items():
        alone = [seed.alone for seed in seeds]
        joined = [seed.joined for seed in seeds]
        cells = [which]
        students = [seed.student for seed in seeds if seed.student is not None]
        for values in (alone, joined, students):
            mean = f"{np.mean(values):.4f}" if values else ""
            cells += [mean, ", ".join(f"{value:.4f}" for value in values)]
        cells.append("; ".join(", ".join(map(str, seed.epochs)) for seed in seeds))
        cells.append(f"{np.mean([seed.seconds for seed in seeds]):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    print(table)
    line = {"dataset": name, "found": msgspec.to_builtins(found)}
    print(json.dumps(line))
    (RESULTS / f"teachers-{name}.md").write_text(table + "\n")
    (RESULTS / f"teachers-{name}.json").write_text(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
