"""Distillation: the losses, the training of a student from labels, and the search for its
hyper-parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.distill.altered import AlteredConfig
    from distilrec.distill.distillation import DistillationConfig, distill_model
    from distilrec.distill.sources import AskedTeacher

_MODULES = {
    "AlteredConfig": "altered",
    "AskedTeacher": "sources",
    "DistillationConfig": "distillation",
    "distill_model": "distillation",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "AlteredConfig",
    "AskedTeacher",
    "DistillationConfig",
    "distill_model",
]
