"""Tables from files and frames. Text formats are read as text: types are decided later, by the schema.

| suffix | format |
|---|---|
| .csv .tsv .txt | a header line, separated by comma, tab, semicolon or blank (found from the header) |
| .dat | MovieLens: `::` between the fields, no header (give `columns`), UTF-8 or Latin-1 |
| .parquet .pq | Parquet |
| .jsonl .ndjson | one JSON object a line |
| .inter .user .item | RecBole atomic files: tab separated, `name:type` headers; `*_seq` splits at blanks |
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import polars as pl

from distilrec.errors import ColumnTypeError, ConfigError, DataError, FileMissingError, NotEnoughDataError

_SEPARATED = {".csv", ".tsv", ".txt"}
_ATOMIC = {".inter", ".user", ".item"}


def read_table(source: object, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A table from a path, a polars frame or a pandas frame.

    columns: the names of the fields of a file without a header (`.dat`, or any separated text).
    Raises FileMissingError, NotEnoughDataError for an empty file, DataError for one that cannot be parsed and
    ConfigError for an unknown suffix or a wrong number of `columns`.
    """
    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    if not isinstance(source, str | Path):
        return _from_pandas(source)
    path = Path(source)
    if not path.is_file():
        raise FileMissingError(
            f"{path} does not exist or is not a file",
            fix="check the path; it is relative to where you are",
            file=str(path),
        )
    if path.stat().st_size == 0:
        raise NotEnoughDataError(f"{path} is empty", fix="give a file with at least a few rows", file=str(path))
    suffix = path.suffix.lower()
    try:
        if suffix in {".parquet", ".pq"}:
            return pl.read_parquet(path)
        if suffix in {".jsonl", ".ndjson"}:
            return pl.read_ndjson(path, infer_schema_length=None)
        if suffix in _ATOMIC:
            return _atomic(path)
        if suffix == ".dat":
            return _double_colon(path, columns)
        if suffix in _SEPARATED:
            return _separated(path, columns)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as problem:
        first = str(problem).strip().splitlines()[0]
        raise DataError(
            f"{path} cannot be read as {suffix[1:]}: {first}", fix="check that the file is complete", file=str(path)
        ) from None
    raise ConfigError(
        f"{path}: unknown file type {suffix!r}",
        fix="use .csv, .tsv, .txt, .dat, .parquet, .jsonl, .inter, .user or .item",
        file=str(path),
    )


def _from_pandas(source: object) -> pl.DataFrame:
    if type(source).__module__.split(".")[0] != "pandas":
        raise ConfigError(
            f"a table must be a path, a polars frame or a pandas frame, not {type(source).__name__}",
            fix="convert it with polars.DataFrame(...)",
        )
    frame: Any = source
    # Column by column through Python lists where numpy has no type for it: no pyarrow needed.
    return pl.DataFrame(
        {
            str(name): frame[name].to_numpy()
            if frame[name].dtype.kind in "iufbM"
            else [None if _is_missing(value) else value for value in frame[name].tolist()]
            for name in frame.columns
        },
        strict=False,
    )


def _is_missing(value: object) -> bool:
    """None, NaN, pandas.NA and pandas.NaT: the missing values that a pandas column of objects may hold."""
    return value is None or type(value).__name__ in {"NAType", "NaTType"} or (isinstance(value, float) and isnan(value))


def _separated(path: Path, columns: Sequence[str] | None) -> pl.DataFrame:
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
    separator = max(["\t", ",", ";", " "], key=lambda mark: (header.count(mark) > 0, "\t,; ".find(mark) * -1))
    table = pl.read_csv(
        path, separator=separator, has_header=columns is None, infer_schema=False, encoding="utf8-lossy"
    )
    return table if columns is None else _named(path, table, columns)


def _double_colon(path: Path, columns: Sequence[str] | None) -> pl.DataFrame:
    if columns is None:
        raise ConfigError(
            f"{path} has no header line",
            fix="name its columns, for example user_id,item_id,rating,timestamp",
            parameter="columns",
        )
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = pl.Series("line", [line for line in text.splitlines() if line])
    parts = lines.str.split("::")
    wrong = (parts.list.len() != len(columns)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise ColumnTypeError(
            f"{path}, line {row + 1}: {len(parts[row])} fields where {len(columns)} are declared ({', '.join(columns)})",
            fix="correct the line, or the list of columns",
            file=str(path),
            row=row + 1,
        )
    return pl.DataFrame({name: parts.list.get(place) for place, name in enumerate(columns)})


def _atomic(path: Path) -> pl.DataFrame:
    table = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None, encoding="utf8-lossy")
    plain = {}
    for header in table.columns:
        name, _, kind = header.partition(":")
        column = table[header]
        if name in plain:
            raise ColumnTypeError(f"{path} has two columns {name!r}", fix="rename one", file=str(path), column=name)
        plain[name] = column.str.split(" ") if kind.endswith("_seq") else column
    return pl.DataFrame(plain)


def _named(path: Path, table: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    if table.width != len(columns):
        raise ConfigError(
            f"{path} has {table.width} columns, {len(columns)} names were given",
            fix="name every column",
            file=str(path),
            parameter="columns",
        )
    return table.rename(dict(zip(table.columns, columns, strict=True)))
