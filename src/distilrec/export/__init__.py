"""Writes the bundle of a trained student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.export.export import BundleConfig, export_bundle

_MODULES = {
    "BundleConfig": "export",
    "export_bundle": "export",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "BundleConfig",
    "export_bundle",
]
