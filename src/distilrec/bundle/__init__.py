"""The files of a bundle: what they hold, how they are read, checked and written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.bundle.format import read_bundle
    from distilrec.bundle.manifest import Manifest

_MODULES = {
    "Manifest": "manifest",
    "read_bundle": "format",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Manifest",
    "read_bundle",
]
