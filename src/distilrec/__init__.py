"""distilrec: distil any recommender into a small student that answers in microseconds.

`load` serves a bundle and needs the runtime only. The other names train and need
`distilrec[train]`; they are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from distilrec._version import __version__
from distilrec.engine.recommender import Event, Recommendation, Recommender, load
from distilrec.errors import DistilrecError, missing_extra

if TYPE_CHECKING:
    from distilrec.data.dataset import load_dataset
    from distilrec.data.preparation import prepare_dataset
    from distilrec.data.schema import Feature, Schema
    from distilrec.distill.distillation import distil
    from distilrec.labels.extract import extract_labels
    from distilrec.report.comparison import compare
    from distilrec.runs.config import RunConfig, read_config
    from distilrec.runs.stages import run_all
    from distilrec.training.trained import train_model

_LAZY = {
    "Feature": "distilrec.data.schema",
    "RunConfig": "distilrec.runs.config",
    "Schema": "distilrec.data.schema",
    "compare": "distilrec.report.comparison",
    "distil": "distilrec.distill.distillation",
    "extract_labels": "distilrec.labels.extract",
    "load_dataset": "distilrec.data.dataset",
    "prepare_dataset": "distilrec.data.preparation",
    "read_config": "distilrec.runs.config",
    "run_all": "distilrec.runs",
    "train_model": "distilrec.training.trained",
}

__all__ = [
    "DistilrecError",
    "Event",
    "Feature",
    "Recommendation",
    "Recommender",
    "RunConfig",
    "Schema",
    "__version__",
    "compare",
    "distil",
    "extract_labels",
    "load",
    "load_dataset",
    "prepare_dataset",
    "read_config",
    "run_all",
    "train_model",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'distilrec' has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as missing:
        if missing.name in {"torch", "polars"}:
            raise missing_extra(missing.name, "train") from None
        raise
