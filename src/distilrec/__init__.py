"""distilrec: distil any recommender into a small student that answers in microseconds.

`load` serves a bundle and needs the runtime only. The other names train and need
`distilrec[train]`; they are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names
from distilrec._version import __version__
from distilrec.engine.answers import Recommendation
from distilrec.engine.events import Event
from distilrec.engine.recommender import Recommender, load
from distilrec.errors import DistilrecError

if TYPE_CHECKING:
    from distilrec.data.dataset import load_dataset
    from distilrec.data.preparation import prepare_dataset
    from distilrec.data.schema import Feature, Schema
    from distilrec.distill.distillation import distill_model
    from distilrec.labels.extract import extract_labels
    from distilrec.report.comparison import compare
    from distilrec.runs.config import RunConfig, read_config
    from distilrec.runs.stages import run_all
    from distilrec.training.trained import train_model

_MODULES = {
    "Feature": "data.schema",
    "RunConfig": "runs.config",
    "Schema": "data.schema",
    "compare": "report.comparison",
    "distill_model": "distill.distillation",
    "extract_labels": "labels.extract",
    "load_dataset": "data.dataset",
    "prepare_dataset": "data.preparation",
    "read_config": "runs.config",
    "run_all": "runs.stages",
    "train_model": "training.trained",
}
__getattr__ = lazy_names(__name__, _MODULES)

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
    "distill_model",
    "extract_labels",
    "load",
    "load_dataset",
    "prepare_dataset",
    "read_config",
    "run_all",
    "train_model",
]
