"""What all examples here share: ML-100K (or a part of it), and a short distillation from any
teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import polars as pl

import distilrec
from distilrec.data import DATASETS, Dataset, fetch_dataset
from distilrec.report import table
from distilrec.runs import DataConfig, RunConfig, run_all
from distilrec.teachers import Teacher
from distilrec.training import TrainingConfig


def distill_from(name: str, teacher: Callable[[Dataset], Teacher]) -> None:
    """Distils a student from the teacher that `teacher` makes for the data; prints the comparison
    and some answers.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--users", type=int, default=943, help="number of users to keep, for a quick try"
    )
    parser.add_argument("--epochs", type=int, default=40, help="of the student")
    parser.add_argument("--folder", type=Path, default=Path("runs") / name)
    arguments = parser.parse_args()

    source = fetch_dataset("ml-100k")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log = pl.read_csv(source / "interactions.csv").filter(pl.col("user_id") <= arguments.users)
    log.write_csv(arguments.folder / "log.csv")
    config = RunConfig(
        data=DataConfig(
            interactions=str(arguments.folder / "log.csv"),
            users=str(source / "users.csv"),
            items=str(source / "items.csv"),
            schema=DATASETS["ml-100k"].schema,
            name=name,
        ),
        student_training=TrainingConfig(
            epochs=arguments.epochs, patience=arguments.epochs, learning_rate=4e-3
        ),
    )
    comparison = run_all(config, arguments.folder, teacher=teacher)
    for row in table(comparison):
        print("  ".join(row[:3]))
    recommender = distilrec.load(arguments.folder / "bundle")
    for item, score in recommender.recommend("1", k=3):
        print(f"{score:8.3f}  {recommender.title(item)}")
