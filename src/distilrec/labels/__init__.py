"""What a teacher says about each training event, stored for its students."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.labels.extract import LabelConfig, extract_labels
    from distilrec.labels.store import LabelStore

_MODULES = {
    "LabelConfig": "extract",
    "LabelStore": "store",
    "extract_labels": "extract",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "LabelConfig",
    "LabelStore",
    "extract_labels",
]
