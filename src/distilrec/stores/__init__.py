"""The event log of a service, in SQLite, Redis or PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.stores.opening import open_store
    from distilrec.stores.records import Store

_MODULES = {
    "Store": "records",
    "open_store": "opening",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Store",
    "open_store",
]
