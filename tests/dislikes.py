"""A student that knows dislikes: what tests of the engine and of the service share."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from distilrec.data.dataset import Dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.export.export import export_bundle
from distilrec.networks.build import StudentConfig
from distilrec.targets import EventRole, Targets
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model

TARGETS = Targets(
    (
        EventRole("buy"),
        EventRole("view", role="inform"),
        EventRole("dislike", role="negative"),
        EventRole("hide", role="negative"),  # of which the log has none
    )
)
GENRES, ITEMS = 4, 40


def genre(item: str) -> int:
    return int(item[1:]) % GENRES


def dataset(users: int = 60) -> Dataset:
    """People like one genre, dislike another, and look at the others."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        liked, disliked = rng.choice(GENRES, 2, replace=False)
        for item in rng.permutation(ITEMS)[:20]:
            kind = {liked: "buy", disliked: "dislike"}.get(item % GENRES, "view")
            rows.append((f"u{user}", f"i{item}", kind, 1_600_000_000.0 + len(rows)))
    log = pl.DataFrame(rows, ["user_id", "item_id", "event_type", "timestamp"], orient="row")
    schema = Schema(timestamp="timestamp", event_type="event_type")
    return prepare_dataset(log, schema, targets=TARGETS)


def exported(config: StudentConfig, folder: Path, *, learned: bool = False) -> Path:
    """The bundle of a student, which has learned who likes what, or nearly nothing."""
    data = dataset(200 if learned else 60)
    training = TrainingConfig(epochs=1)
    if learned:
        config = msgspec.structs.replace(
            config, dropout=0.2
        )  # with less, so few users are learned by heart
        training = TrainingConfig(
            epochs=10, patience=10, batch_size=8, learning_rate=1e-2, averaging=0.9, warmup_steps=10
        )
    export_bundle(train_model(config, data, training, seed=0), data, folder)
    return folder
