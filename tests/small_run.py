"""A small synthetic log and a whole run on it: what the tests share. `python -m tests.small_run FOLDER` makes one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch

from distilrec.data.dataset import Dataset
from distilrec.data.features import fit_encoder
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Feature, Schema
from distilrec.data.splits import Split
from distilrec.labels.extract import LabelConfig
from distilrec.networks.dnn import DnnConfig
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.recurrent import Recurrent, RecurrentConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.progress import Silent
from distilrec.runs.config import DataConfig, RunConfig
from distilrec.runs.stages import run_all
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import TrainedModel, train_model

SCHEMA = Schema(
    timestamp="timestamp",
    event_type="event_type",
    user_key="user_id",
    item_key="item_id",
    title="title",
    user_features=(Feature("age", "numeric"), Feature("country", "categorical")),
    item_features=(
        Feature("genres", "multi"),
        Feature("price", "numeric"),
        Feature("title", "text"),
    ),
)


# A small student of each kind
STUDENT = RecurrentConfig(dim=8, max_history=12)
NETWORKS = [
    TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=12),
    DnnConfig(dim=8, hidden=16, max_history=12),
    STUDENT,
    MlpConfig(dim=8, hidden=8, max_history=12),
    SoftTreeConfig(depth=2, inputs=5, max_history=12),
]
STUDENTS = {
    "recurrent": RecurrentConfig(dim=8, scales=3),
    "mlp": MlpConfig(dim=8, hidden=16),
    "soft_tree": SoftTreeConfig(depth=3, inputs=20),
}


def timed_student(config: RecurrentConfig, dataset: Dataset, epochs: int = 1) -> TrainedModel:
    """A student that is told the time or knows visits, which matter more than after such a short training."""
    trained = train_model(config, dataset, TrainingConfig(epochs=epochs, batch_size=16), seed=0)
    assert isinstance(trained.model, Recurrent)
    draw_times(trained.model)
    return trained


def draw_times(student: Recurrent) -> Recurrent:
    """Draws what depends on the time, and returns the student, which is not in training."""
    generator = torch.Generator().manual_seed(0)
    tables = [] if student.time is None else [*student.time.parameters()]
    if getattr(student, "visits", None) is not None:
        term = student.neighbours
        tables += [student.visits, term.earlier_ages, term.repeats, term.earlier_repeats]
    assert tables
    with torch.no_grad():
        for table in tables:
            table.copy_(torch.randn(table.shape, generator=generator))
    return student.eval()


def in_visits(dataset: Dataset) -> Dataset:
    """The same log in visits of three events, a minute apart, one a day, and with repeats."""
    place = np.arange(len(dataset.items)) - dataset.offsets[dataset.user_rows()]
    times = 1.5e9 + 86_400.0 * (place // 3) + 60.0 * (place % 3)
    return replace(dataset, times=times, info=msgspec.structs.replace(dataset.info, repeats=True))


def in_context(dataset: Dataset) -> Dataset:
    """The same with a context of two features, drawn, for each event."""
    rng = np.random.default_rng(0)
    features = (Feature("device", "categorical"), Feature("load", "numeric"))
    values = [
        {"device": str(rng.choice(["phone", "tv"])), "load": float(rng.normal())}
        for _ in dataset.items
    ]
    encoder = fit_encoder(values, features)
    info = msgspec.structs.replace(
        dataset.info,
        schema=msgspec.structs.replace(dataset.info.schema, context_features=features),
        context_encoder=encoder,
    )
    return replace(dataset, info=info, context=encoder.encode_rows(values))


def tables(seed: int = 0, users: int = 60, items: int = 40) -> dict[str, pl.DataFrame]:
    """A log in which people mostly stay in their genre, and its two feature tables."""
    rng = np.random.default_rng(seed)
    genre = rng.integers(4, size=items)
    rows = []
    for user in range(users):
        taste = rng.integers(4)
        weights = np.where(genre == taste, 8.0, 1.0) / np.arange(2, items + 2)
        chosen = rng.choice(
            items, size=rng.integers(4, 20), replace=False, p=weights / weights.sum()
        )
        start = rng.integers(1_500_000_000, 1_600_000_000)
        rows += [
            (f"u{user}", f"i{item}", int(start + 60 * n), str(rng.choice(["view", "buy"])))
            for n, item in enumerate(chosen)
        ]
    return {
        "log": pl.DataFrame(
            rows, schema=["user_id", "item_id", "timestamp", "event_type"], orient="row"
        ),
        "users": pl.DataFrame(
            {
                "user_id": [f"u{user}" for user in range(users)],
                "age": [
                    None if user % 7 == 0 else int(rng.integers(18, 80)) for user in range(users)
                ],
                "country": [str(rng.choice(["de", "fr", "pl"])) for _ in range(users)],
            }
        ),
        "items": pl.DataFrame(
            {
                "item_id": [
                    f"i{item}" for item in range(items + 2)
                ],  # the last two are in no interaction
                "title": [f"Thing number {item}" for item in range(items + 2)],
                "genres": [f"g{genre[item % items]}|g{item % 3}" for item in range(items + 2)],
                "price": [float(rng.uniform(1, 9)) for _ in range(items + 2)],
            }
        ),
    }


class Heard(Silent):
    """Tells a function of every step."""

    def __init__(self, hear) -> None:
        self._hear = hear

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        self._hear(task, done, total)


class Said(Silent):
    """Keeps the lines that are said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def dataset(split: str = "leave-one-out", seed: int = 0) -> Dataset:
    made = tables(seed)
    return prepare_dataset(
        made["log"],
        SCHEMA,
        users=made["users"],
        items=made["items"],
        name="small",
        split=Split(kind=split),
    )


def interaction_matrix(data: Dataset) -> np.ndarray:
    """Who had what in training, (users, items) float32 of 0 and 1."""
    matrix = np.zeros((data.users, data.catalogue_size), np.float32)
    rows = data.training_rows()
    matrix[data.user_rows()[rows], data.items[rows]] = 1.0
    return matrix


def write_tables(folder: Path, seed: int = 0) -> None:
    for name, table in tables(seed).items():
        table.write_csv(folder / f"{name}.csv")


def small_config(folder: Path) -> RunConfig:
    return RunConfig(
        data=DataConfig(
            interactions=str(folder / "log.csv"),
            users=str(folder / "users.csv"),
            items=str(folder / "items.csv"),
            schema=SCHEMA,
            name="small",
        ),
        teacher=TransformerConfig(dim=16, layers=1, feed_forward=32, max_history=16),
        teacher_training=TrainingConfig(epochs=3, batch_size=16),
        closed_form=False,  # tests/teachers/test_closed_form.py and tests/cli have the default
        labels=LabelConfig(top_k=10, samples=10),
        student=RecurrentConfig(dim=8, max_history=16),
        student_training=TrainingConfig(epochs=3, batch_size=16, learning_rate=1e-2),
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_tables(target)
    run_all(small_config(target), target)
