"""The training loop, its options, and the trained models that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.training.options import RunOptions, TrainingConfig
    from distilrec.training.trained import TrainedModel, load_model, save_model, train_model

_MODULES = {
    "RunOptions": "options",
    "TrainedModel": "trained",
    "TrainingConfig": "options",
    "load_model": "trained",
    "save_model": "trained",
    "train_model": "trained",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "RunOptions",
    "TrainedModel",
    "TrainingConfig",
    "load_model",
    "save_model",
    "train_model",
]
