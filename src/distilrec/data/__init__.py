"""From a log to a prepared data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.data.checks import DataCheck
    from distilrec.data.cleaning import Cleaning
    from distilrec.data.dataset import Dataset, Histories, load_dataset
    from distilrec.data.fetch import DATASETS, fetch_dataset
    from distilrec.data.preparation import prepare_dataset
    from distilrec.data.queries import Query
    from distilrec.data.schema import Feature, Schema
    from distilrec.data.splits import Split
    from distilrec.data.tables import DeltaTable, IcebergTable
    from distilrec.targets import EventRole, Targets

_MODULES = {
    "Cleaning": "cleaning",
    "DATASETS": "fetch",
    "DataCheck": "checks",
    "Dataset": "dataset",
    "DeltaTable": "tables",
    "EventRole": "cleaning",
    "Feature": "schema",
    "Histories": "dataset",
    "IcebergTable": "tables",
    "Query": "queries",
    "Schema": "schema",
    "Split": "splits",
    "Targets": "cleaning",
    "fetch_dataset": "fetch",
    "load_dataset": "dataset",
    "prepare_dataset": "preparation",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "DATASETS",
    "Cleaning",
    "DataCheck",
    "Dataset",
    "DeltaTable",
    "EventRole",
    "Feature",
    "Histories",
    "IcebergTable",
    "Query",
    "Schema",
    "Split",
    "Targets",
    "fetch_dataset",
    "load_dataset",
    "prepare_dataset",
]
