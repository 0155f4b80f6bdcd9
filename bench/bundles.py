"""A bundle of the size of MovieLens 1M for the benchmarks of engine and service: real catalogue,
users and histories.

    python bench/bundles.py [--dim 64]

The student is trained for one epoch: what it recommends is not the point here, what it costs is.
Writes runs/bench/ml-1m-DIM/bundle unless it is there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distilrec.data.dataset import Dataset
    from distilrec.networks.sequence import TorchScorer

ROOT = Path(__file__).resolve().parent.parent


def ml_1m_bundle(dim: int = 64, neighbours: int = 0, *, told_time: bool = False) -> Path:
    """Return the folder of the bundle, made on first use (about two minutes)."""
    name = f"ml-1m-{dim}" + (f"-neighbours-{neighbours}" if neighbours else "")
    folder = ROOT / "runs" / "bench" / (f"{name}-time" if told_time else name)
    bundle = folder / "bundle"
    if (bundle / "manifest.json").is_file():
        return bundle
    from distilrec.export.export import export_bundle
    from distilrec.networks.recurrent import RecurrentConfig
    from distilrec.runs.config import DataConfig, RunConfig
    from distilrec.runs.stages import prepare
    from distilrec.training.options import TrainingConfig
    from distilrec.training.trained import save_model, train_model

    _, dataset = prepare(RunConfig(DataConfig(dataset="ml-1m")), folder)
    trained = train_model(
        RecurrentConfig(dim=dim, neighbours=neighbours, time=told_time),
        dataset,
        TrainingConfig(epochs=1, learning_rate=4e-3),
        seed=0,
    )
    save_model(trained, folder / "student")
    export_bundle(trained, dataset, bundle)
    return bundle


def ml_1m_torch_student(dim: int) -> tuple[TorchScorer, Dataset]:
    """Return the same student in torch, with the data that it answers about."""
    from distilrec.data.dataset import load_dataset
    from distilrec.networks.sequence import TorchScorer
    from distilrec.training.trained import load_model

    folder = ml_1m_bundle(dim).parent
    dataset = load_dataset(folder / "data")
    return TorchScorer(load_model(folder / "student", dataset).model), dataset


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=64)
    print(ml_1m_bundle(parser.parse_args().dim))
