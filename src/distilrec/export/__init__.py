"""Writes the bundle of a trained student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.export.export import export_bundle
    from distilrec.export.search import BundleConfig

_MODULES = {
    "BundleConfig": "search",
    "export_bundle": "export",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "BundleConfig",
    "export_bundle",
]
