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
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import polars as pl

from distilrec.errors import ColumnTypeError, ConfigError, DataError, FileMissingError, NotEnoughDataError

_PARQUET = {".parquet", ".pq"}
_LINES = {".jsonl", ".ndjson"}
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
    try:
        return _scan(path, columns).collect()
    except _CANNOT_READ as problem:
        raise _unreadable(path, problem) from None


@dataclass(frozen=True)
class Log:
    """A log that is read by slices of rows: a frame in memory, or a Parquet file that may be larger than memory.

    name: for messages; rows: how many there are.
    """

    name: str
    rows: int
    frame: pl.DataFrame | None = None
    file: Path | None = None

    def scan(self) -> pl.LazyFrame:
        """All rows, not read yet."""
        if self.frame is not None:
            return self.frame.lazy()
        assert self.file is not None
        return pl.scan_parquet(self.file)

    def schema(self) -> pl.Schema:
        """Names and types of the columns."""
        return self.scan().collect_schema()

    def slice(self, first: int, rows: int, columns: Sequence[str]) -> pl.DataFrame:
        """These columns of some rows. Raises DataError."""
        try:
            return self.scan().select(columns).slice(first, rows).collect()
        except _CANNOT_READ as problem:
            raise _unreadable(Path(self.name), problem) from None


def open_log(source: object, scratch: Path, columns: Sequence[str] | None = None) -> Log:
    """A log from whatever `read_table` reads. Parquet is read where it is, frames stay in memory.

    scratch: a folder; text is written there as Parquet, in one pass that needs little memory.
    Raises what `read_table` raises.
    """
    if not isinstance(source, str | Path | pl.LazyFrame):
        frame = read_table(source)
        return Log("the log", frame.height, frame)
    path = Path("the log" if isinstance(source, pl.LazyFrame) else source)
    try:
        scan = source if isinstance(source, pl.LazyFrame) else _scan(path, columns)
        file = path.absolute()
        if path.suffix.lower() not in _PARQUET:
            file = scratch / "log.parquet"
            scan.sink_parquet(file)
        rows = pl.scan_parquet(file).select(pl.len()).collect().item()
    except _CANNOT_READ as problem:
        raise _unreadable(path, problem) from None
    return Log(str(path), rows, file=file)


_CANNOT_READ = (pl.exceptions.PolarsError, UnicodeDecodeError, OSError)


def _unreadable(path: Path, problem: Exception) -> DataError:
    first = str(problem).strip().splitlines()[0]
    return DataError(
        f"{path} cannot be read as {path.suffix[1:].lower()}: {first}",
        fix="check that the file is complete",
        file=str(path),
    )


def _scan(path: Path, columns: Sequence[str] | None) -> pl.LazyFrame:
    if not path.is_file():
        raise FileMissingError(
            f"{path} does not exist or is not a file",
            fix="check the path; it is relative to where you are",
            file=str(path),
        )
    if path.stat().st_size == 0:
        raise NotEnoughDataError(f"{path} is empty", fix="give a file with at least a few rows", file=str(path))
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return pl.scan_parquet(path)
    if suffix in _LINES:
        return pl.scan_ndjson(path, infer_schema_length=None)
    if suffix in _ATOMIC:
        return _atomic(path)
    if suffix == ".dat":
        return _double_colon(path, columns).lazy()
    if suffix in _SEPARATED:
        return _separated(path, columns)
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


def _separated(path: Path, columns: Sequence[str] | None) -> pl.LazyFrame:
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
    separator = max(["\t", ",", ";", " "], key=lambda mark: (header.count(mark) > 0, "\t,; ".find(mark) * -1))
    table = pl.scan_csv(
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


def _atomic(path: Path) -> pl.LazyFrame:
    table = pl.scan_csv(path, separator="\t", infer_schema=False, quote_char=None, encoding="utf8-lossy")
    plain: dict[str, pl.Expr] = {}
    for header in table.collect_schema().names():
        name, _, kind = header.partition(":")
        if name in plain:
            raise ColumnTypeError(f"{path} has two columns {name!r}", fix="rename one", file=str(path), column=name)
        plain[name] = pl.col(header).str.split(" ") if kind.endswith("_seq") else pl.col(header)
    return table.select(**plain)


def _named(path: Path, table: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    there = table.collect_schema().names()
    if len(there) != len(columns):
        raise ConfigError(
            f"{path} has {len(there)} columns, {len(columns)} names were given",
            fix="name every column",
            file=str(path),
            parameter="columns",
        )
    return table.rename(dict(zip(there, columns, strict=True)))
