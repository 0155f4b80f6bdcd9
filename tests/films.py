"""A stand-in for MovieLens 100K, with users, items and features that the documents name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from distilrec.data.fetch import DATASETS
from distilrec.data.preparation import prepare_dataset
from distilrec.export.export import export_bundle
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model

NAME = "ml-100k"
USERS = [*range(1, 30), 123]
ITEMS = [*range(1, 41), 50, 101, 172, 181, 456, 789]
NEW_TO_123 = (101, 172, 181, 456, 789)
GENRES = {  # as they are in the data set
    50: "Action|Adventure|Romance|Sci-Fi|War",
    101: "Action|Adventure|Animation|Horror|Sci-Fi",
    172: "Action|Adventure|Drama|Romance|Sci-Fi|War",
    181: "Action|Adventure|Romance|Sci-Fi|War",
    456: "Action|Comedy",
    789: "Comedy|Drama",
}
OTHERS = ("Drama|Comedy", "Action|Drama", "Comedy", "Horror|Thriller", "Romance", "Western", "War")


def tables() -> dict[str, pl.DataFrame]:
    """`interactions`, `users` and `items`, with the columns of the data set once fetched."""
    rng = np.random.default_rng(0)
    rows = []
    for user in USERS:
        items = [item for item in ITEMS if user != 123 or item not in NEW_TO_123]
        rows += [
            (user, int(item), int(rng.integers(1, 6)), 1_600_000_000 + 86_400 * day)
            for day, item in enumerate(rng.choice(items, 12, replace=False))
        ]
    log = pl.DataFrame(rows, ["user_id", "item_id", "rating", "timestamp"], orient="row")
    users = pl.DataFrame({"user_id": USERS, "age": 30, "gender": "F", "occupation": "writer"})
    items = pl.DataFrame(
        {
            "item_id": ITEMS,
            "title": [f"Film {item}" for item in ITEMS],
            "release_year": [1980 + item % 19 for item in ITEMS],
            "genres": [GENRES.get(item, OTHERS[item % len(OTHERS)]) for item in ITEMS],
        }
    )
    return {"interactions": log, "users": users, "items": items}


def write_cache(cache: Path) -> None:
    """Writes it where a fetched data set lies, in a folder for DISTILREC_CACHE."""
    (cache / NAME).mkdir(parents=True)
    for name, table in tables().items():
        table.write_csv(cache / NAME / f"{name}.csv")
    (cache / NAME / "complete").touch()


def export_demo(folder: Path) -> Path:
    """Writes runs/ml-100k/bundle into a folder, a tiny one in place of that of `make demo`."""
    made = tables()
    dataset = prepare_dataset(
        made["interactions"],
        DATASETS[NAME].schema,
        users=made["users"],
        items=made["items"],
        name="films",
    )
    student = train_model(RecurrentConfig(dim=8), dataset, TrainingConfig(epochs=1), seed=0)
    bundle = folder / "runs" / NAME / "bundle"
    export_bundle(student, dataset, bundle)
    return bundle
