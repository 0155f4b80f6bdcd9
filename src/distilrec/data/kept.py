"""A log that is kept with a run: a folder of Parquet files, one of the beginning and one of each
refresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from distilrec.data.readers import Log
from distilrec.data.schema import Schema
from distilrec.files import replacing


def file_name(number: int) -> str:
    """Return the name of the file that a refresh adds, 0 of the one of the beginning."""
    return f"{number:06}.parquet"


def keep_log(log: Log, schema: Schema, erased: Sequence[str], folder: Path) -> None:
    """Write a log into a folder as the file of the beginning, without the rows of erased users."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / file_name(0)) as new:
        log.scan().filter(~is_erased(schema, erased)).sink_parquet(new)


def is_erased(schema: Schema, erased: Sequence[str]) -> pl.Expr:
    """Return whether a row is one of an erased user."""
    return pl.col(schema.user_id).cast(pl.String).is_in(list(erased)).fill_null(value=False)
