"""Compares models on the test part of the data, and writes the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.report.baselines import ease
    from distilrec.report.comparison import Comparison, compare
    from distilrec.report.page import table, verdict, write_report

_MODULES = {
    "Comparison": "comparison",
    "compare": "comparison",
    "ease": "baselines",
    "table": "page",
    "verdict": "page",
    "write_report": "page",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Comparison",
    "compare",
    "ease",
    "table",
    "verdict",
    "write_report",
]
