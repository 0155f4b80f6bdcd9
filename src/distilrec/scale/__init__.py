"""Runs shards of work on the workers of a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.scale.ray_workers import RayWorkers

_MODULES = {
    "RayWorkers": "ray_workers",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "RayWorkers",
]
