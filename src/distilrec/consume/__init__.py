"""Take events as they happen, from Kafka or a Redis stream, into a service or a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.consume.config import ConsumeConfig, Fields
    from distilrec.consume.loop import consume
    from distilrec.consume.tally import Tally

_MODULES = {
    "ConsumeConfig": "config",
    "Fields": "config",
    "Tally": "tally",
    "consume": "loop",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "ConsumeConfig",
    "Fields",
    "Tally",
    "consume",
]
