"""The service over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.serve.config import ServiceConfig

_MODULES = {
    "ServiceConfig": "config",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "ServiceConfig",
]
