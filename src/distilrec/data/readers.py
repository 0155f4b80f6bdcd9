"""Tables from files and frames. Text formats are read as text: types are decided later, by the
schema.

| suffix | format |
|---|---|
| .csv .tsv .txt | a header line; separated by comma, tab, semicolon or blank, as the header is |
| .dat | MovieLens: `::` between the fields, no header (give `columns`) |
| .parquet .pq | Parquet |
| .jsonl .ndjson | one JSON object a line |
| .inter .user .item | RecBole: tab separated, `name:type` headers; `*_seq` splits at blanks |

Text may be compressed (.csv.gz, .jsonl.zst). A path may be a folder, also with partitions
(`day=2026-01-01/part-0.parquet`), or a pattern (`events-*.csv.gz`): its files are read one after
the other, in the order of their names (`distilrec.data.paths`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from distilrec.data.json_lines import scan_json_lines
from distilrec.data.lines import TextFormat, plain_text
from distilrec.data.objects import from_pandas, without_objects
from distilrec.data.paths import ATOMIC, LINES, PARQUET, Files, Partition, find_files, suffix_of
from distilrec.data.queries import Query, Since, run_query
from distilrec.data.remote import copy_here, is_remote
from distilrec.data.separated import Rows, distinct, scan_double_colons, scan_separated
from distilrec.data.tables import DeltaTable, IcebergTable, copy_table
from distilrec.errors import (
    ColumnTypeError,
    DataError,
    DistilrecError,
    FileMissingError,
    NotEnoughDataError,
    first_line,
)
from distilrec.files import refused_by_system
from distilrec.ids import REFUSED

_CHANGED = (pl.Categorical, pl.Enum, pl.Binary, pl.Object)
_CANNOT_READ = (pl.exceptions.PolarsError, UnicodeDecodeError, OSError)


def read_table(
    source: object, columns: Sequence[str] | None = None, text: TextFormat | None = None
) -> pl.DataFrame:
    """Return a table from a path, a polars frame or a pandas frame.

    columns: the names of the fields of a file without a header (`.dat`, or any separated text).
    text: how text is written.
    Raises FileMissingError, NotEnoughDataError for an empty file, DataError for one that cannot be
    parsed and ConfigError for an unknown suffix or a wrong number of `columns`.
    """
    if isinstance(source, pl.DataFrame) and not any(
        isinstance(dtype, _CHANGED) for dtype in source.dtypes
    ):
        return source
    with TemporaryDirectory(prefix="distilrec-") as scratch:
        return open_log(source, Path(scratch), columns, text).read()


@dataclass(frozen=True)
class Log:
    """A table that is read by slices of rows: a frame in memory, or Parquet files that may be
    larger than memory.

    name: for messages; rows: how many there are. rows_of: how many each of the files has.
    partitions: the columns that the folders of each file say. types: of columns that have different
    types in the files. uuids: columns of 16 bytes. notes: what a report should say about the files.
    """

    name: str
    rows: int
    frame: pl.DataFrame | None = None
    files: tuple[Path, ...] = ()
    rows_of: tuple[int, ...] = ()
    partitions: tuple[Partition, ...] = ()
    types: tuple[tuple[str, pl.DataType], ...] = ()
    uuids: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def scan(self) -> pl.LazyFrame:
        """Return all rows, not read yet."""
        if self.frame is not None:
            return _plain(self.frame.lazy(), self.uuids)
        return pl.concat([self._scan_file(number) for number in range(len(self.files))])

    def schema(self) -> pl.Schema:
        """Return names and types of the columns."""
        if self.frame is not None:
            return self.scan().collect_schema()
        return self._scan_file(0).collect_schema()

    def read(self) -> pl.DataFrame:
        """Return the whole table. Raises DataError."""
        return self.slice(0, self.rows, self.schema().names())

    def slice(self, first: int, rows: int, columns: Sequence[str]) -> pl.DataFrame:
        """Return these columns of some rows. Raises DataError."""
        with readable(self.name):
            if self.frame is not None:
                return self.scan().select(columns).slice(first, rows).collect()
            parts: list[pl.DataFrame] = []
            begins = 0
            for number, count in enumerate(self.rows_of):
                low, high = max(first, begins), min(first + rows, begins + count)
                if low < high or (not parts and number == len(self.files) - 1):
                    part = (
                        self._scan_file(number)
                        .select(columns)
                        .slice(max(0, low - begins), max(0, high - low))
                    )
                    parts.append(part.collect())
                begins += count
            return pl.concat(parts)

    def since(self, since: Since, at_least: pl.Expr) -> pl.LazyFrame:
        """Return the rows since a moment, not read yet. at_least: the condition on the column of
        times. Files whose folders say that all of their rows are older are left out.
        """
        if self.frame is not None:
            return self.scan().filter(at_least)
        kept = [n for n in range(len(self.files)) if not self._is_older(n, since.column, at_least)]
        scans = [self._scan_file(number).filter(at_least) for number in kept]
        return pl.concat(scans) if scans else self._scan_file(0).clear()

    def _is_older(self, number: int, column: str, at_least: pl.Expr) -> bool:
        said = dict(self.partitions[number])
        there = pl.scan_parquet(self.files[number], glob=False).collect_schema()
        if column not in said or column in there:
            return False
        return pl.DataFrame({column: [said[column]]}).filter(at_least).is_empty()

    def _scan_file(self, number: int) -> pl.LazyFrame:
        scan = _plain(self._with_partition(number), self.uuids)
        if self.types:
            schema = scan.collect_schema()
            scan = scan.with_columns(
                _converted(name, schema[name], wanted) for name, wanted in self.types
            )
        return scan.select(self._with_partition(0).collect_schema().names()) if number else scan

    def _with_partition(self, number: int) -> pl.LazyFrame:
        return _with_partition(self.files[number], self.partitions[number])


def open_log(
    source: object,
    scratch: Path,
    columns: Sequence[str] | None = None,
    text: TextFormat | None = None,
) -> Log:
    """Return a log from whatever `read_table` reads, from a query on a database, or from a Delta or
    Iceberg table. Parquet is read where it is, frames stay in memory.

    scratch: a folder; text is written there as Parquet, in one pass that needs little memory.
    Raises what `read_table` raises.
    """
    if isinstance(source, Query):
        return open_answer(source, scratch)
    if isinstance(source, DeltaTable | IcebergTable):
        return open_table(source, scratch)
    if isinstance(source, pl.LazyFrame):
        with readable("the log", scratch):
            source.sink_parquet(scratch / "log.parquet")
        return _opened("the log", Files((scratch / "log.parquet",), ((),)), ["the log"])
    if not isinstance(source, str | Path):
        frame = source if isinstance(source, pl.DataFrame) else from_pandas(source)
        frame = without_objects(frame)
        return Log("the log", frame.height, frame, uuids=_uuids([frame.lazy()]))
    if is_remote(source):
        return _open_remote(str(source), scratch, columns, text or TextFormat())
    return _open_files(Path(source), scratch, columns, text or TextFormat())


def open_answer(query: Query, scratch: Path, since: Since | None = None) -> Log:
    """Return the rows of a query, since a moment where that is given. Raises what `run_query`
    raises.
    """
    answer = run_query(query, scratch, since)
    files = Files(answer.files, ((),) * len(answer.files), answer.notes)
    return _opened(query.name, files, [query.name] * len(answer.files))


def open_table(table: DeltaTable | IcebergTable, scratch: Path, keep: pl.Expr | None = None) -> Log:
    """Return the rows of a table that meet a condition. Raises what `copy_table` raises."""
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / "table.parquet"
    note = copy_table(table, target, keep)
    return _opened(table.name, Files((target,), ((),), (note,)), [table.name])


def _open_remote(
    address: str, scratch: Path, columns: Sequence[str] | None, text: TextFormat
) -> Log:
    """Return a log on object storage; what is said of its files names their addresses."""
    path = copy_here(address, scratch)
    here, there = f"{scratch / 'remote'}/", "/".join(address.split("/")[:3]) + "/"
    try:
        log = _open_files(path, scratch, columns, text)
    except DistilrecError as problem:
        context = {
            name: value.replace(here, there) if isinstance(value, str) else value
            for name, value in problem.context.items()
        }
        raise type(problem)(
            problem.message.replace(here, there), fix=problem.fix, **context
        ) from None
    return replace(log, name=address, notes=tuple(note.replace(here, there) for note in log.notes))


def _open_files(path: Path, scratch: Path, columns: Sequence[str] | None, text: TextFormat) -> Log:
    plain, notes = list[Path](), list[str]()
    with readable(str(path), scratch):
        found = find_files(path)
        for number, file in enumerate(found.paths):
            if suffix_of(file) in PARQUET:
                plain.append(file.absolute())
                continue
            folder = scratch / f"file-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            rows = _rows(file, columns, text, folder)
            target = folder / "log.parquet"
            try:
                rows.scan.sink_parquet(target)
            except pl.exceptions.PolarsError:
                if rows.strictly is None:
                    raise
                rows = rows.strictly()
                rows.scan.sink_parquet(target)
            count = pl.scan_parquet(target, glob=False).select(pl.len()).collect().item()
            if rows.count is not None and count != rows.count:
                raise DataError(
                    f"{file}: {count:,} rows were read of {rows.count:,} records",
                    fix="check the line ends and the quotes of the file",
                    file=str(file),
                )
            for left in folder.iterdir():  # copies and batches
                if left != target:
                    left.unlink()
            plain.append(target)
            notes += rows.notes
        opened = Files(tuple(plain), found.partitions, (*found.notes, *notes))
        return _opened(str(path), opened, [str(file) for file in found.paths])


def _with_partition(file: Path, partition: Partition) -> pl.LazyFrame:
    """Return a Parquet file with the columns of its partition, but for those that it has itself."""
    scan = pl.scan_parquet(file, glob=False)
    if not partition:
        return scan
    there = scan.collect_schema()
    return scan.with_columns(
        pl.lit(value, dtype=pl.String).alias(name) for name, value in partition if name not in there
    )


def _opened(name: str, files: Files, called: Sequence[str]) -> Log:
    """Return the log in these Parquet files. called: what messages call each of them."""
    scans = [_with_partition(*both) for both in zip(files.paths, files.partitions, strict=True)]
    counts = tuple(scan.select(pl.len()).collect().item() for scan in scans)
    uuids = _uuids(scans)
    schemas = [_plain(scan, uuids).collect_schema() for scan in scans]
    for file, schema in zip(called, schemas, strict=True):
        if set(schema) != set(schemas[0]):
            other = sorted(set(schema) ^ set(schemas[0]))
            raise ColumnTypeError(
                f"{name}: {file} and {called[0]} have different columns: {', '.join(other)}",
                fix="give files with the same columns",
                file=file,
                column=other[0],
            )
    types: dict[str, pl.DataType] = {}
    for column, first in schemas[0].items():
        distinct_types = list(dict.fromkeys(schema[column] for schema in schemas))
        if len(distinct_types) > 1:
            types[column] = _common(name, column, distinct_types)
        elif isinstance(first, pl.Null) and len(scans) > 1:
            types[column] = pl.String()
    return Log(
        name,
        sum(counts),
        None,
        files.paths,
        counts,
        files.partitions,
        tuple(types.items()),
        uuids,
        files.notes,
    )


def _common(name: str, column: str, types: list[pl.DataType]) -> pl.DataType:
    """Return the type that holds a column of several files without a loss."""
    types = [dtype for dtype in types if not isinstance(dtype, pl.Null)]
    if len(types) == 1:
        return types[0]
    if all(dtype.is_integer() for dtype in types):
        return pl.Int64() if pl.UInt64() not in types else pl.String()
    if all(dtype.is_float() for dtype in types):
        return pl.Float64()
    if all(dtype.is_numeric() or isinstance(dtype, pl.String) for dtype in types):
        return pl.String()
    if all(isinstance(dtype, pl.Datetime) for dtype in types):
        zones = {dtype.time_zone is None for dtype in types}  # type: ignore[attr-defined]
        if len(zones) == 1:
            return pl.Datetime("us", "UTC" if zones == {False} else None)
    raise ColumnTypeError(
        f"{name}: column {column!r} has different types in the files: {', '.join(map(str, types))}",
        fix="write the column with one type in all files",
        file=name,
        column=column,
    )


def _converted(name: str, there: pl.DataType, wanted: pl.DataType) -> pl.Expr:
    value = pl.col(name)
    if isinstance(wanted, pl.String) and there.is_float():
        # With the `.0` that says what they were: such ids are refused where they are 2^53 or more.
        whole = value.cast(pl.Int128, strict=False)
        return (
            pl.when(whole.cast(pl.Float64) == value)
            .then(pl.format("{}.0", whole))
            .otherwise(value.cast(pl.String))
            .alias(name)
        )
    return value.cast(wanted)


@contextmanager
def readable(name: str, scratch: Path | None = None) -> Iterator[None]:
    """Turn what polars says of a table that it reads, or whose copy in `scratch` it writes, into
    ours.
    """
    try:
        yield
    except _CANNOT_READ as problem:
        raise _unreadable(Path(name), problem, scratch) from None


def _unreadable(path: Path, problem: Exception, scratch: Path | None) -> DistilrecError:
    """Return the error for a table that cannot be read, or whose copy in `scratch` cannot be
    written.
    """
    if refused := refused_by_system(problem, scratch or path):
        return refused
    if isinstance(problem, FileNotFoundError):
        return FileMissingError(
            f"{problem.filename or path} does not exist, or went while it was read",
            fix="check the path, and links that lead to it; files must stay until they are read",
            file=str(problem.filename or path),
        )
    kind = suffix_of(path)[1:]
    return DataError(
        f"{path} cannot be read{kind and f' as {kind}'}: {first_line(problem)}",
        fix="check that the file is complete",
        file=str(path),
    )


def _rows(file: Path, columns: Sequence[str] | None, form: TextFormat, scratch: Path) -> Rows:
    suffix = suffix_of(file)
    text = plain_text(file, form, scratch)
    if text.lines == text.blank:
        raise NotEnoughDataError(
            f"{file} is empty", fix="give a file with at least a few rows", file=str(file)
        )
    if suffix in LINES:
        return scan_json_lines(text, scratch)
    if suffix == ".dat":
        return scan_double_colons(text, columns, scratch)
    if suffix in ATOMIC:
        return _atomic(file, scan_separated(text, form, None, scratch, "\t"))
    return scan_separated(text, form, columns, scratch)


def _atomic(file: Path, rows: Rows) -> Rows:
    headers = rows.scan.collect_schema().names()
    names = distinct([header.partition(":")[0] for header in headers], file)
    cells = [
        (pl.col(header).str.split(" ") if header.endswith("_seq") else pl.col(header)).alias(name)
        for header, name in zip(headers, names, strict=True)
    ]
    return Rows(rows.scan.select(cells), rows.notes, rows.count)


def _plain(scan: pl.LazyFrame, uuids: frozenset[str]) -> pl.LazyFrame:
    """Return the same with text in place of categories (dictionaries) and bytes, and UUIDs as they
    are written.
    """
    changed = []
    for name, dtype in scan.collect_schema().items():
        if isinstance(dtype, pl.Categorical | pl.Enum):
            changed.append(pl.col(name).cast(pl.String))
        elif isinstance(dtype, pl.Binary) and name in uuids:
            digits = pl.col(name).bin.encode("hex")
            groups = [
                digits.str.slice(first, length)
                for first, length in ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
            ]
            changed.append(pl.concat_str(groups, separator="-").alias(name))
        elif isinstance(dtype, pl.Binary):
            changed.append(
                pl.col(name).map_batches(_decoded, return_dtype=pl.String, is_elementwise=True)
            )
    return scan.with_columns(changed) if changed else scan


def _decoded(values: pl.Series) -> pl.Series:
    """Return bytes as text; the mark U+FFFD, which no id may hold, where they are not UTF-8."""
    return pl.Series(
        values.name,
        [None if value is None else value.decode("utf-8", "replace") for value in values.to_list()],
        dtype=pl.String,
    )


def _uuids(scans: list[pl.LazyFrame]) -> frozenset[str]:
    """Return the columns of bytes that hold UUIDs: 16 bytes everywhere, and not text everywhere."""
    found: set[str] = set()
    for name, dtype in scans[0].collect_schema().items():
        if isinstance(dtype, pl.Binary):
            value = pl.col(name)
            text = value.map_batches(_decoded, return_dtype=pl.String, is_elementwise=True)
            of_16 = (value.bin.size() == 16).all()
            tests = [
                scan.select(of_16.alias("16"), text.str.contains(REFUSED).any().alias("bytes"))
                for scan in scans
            ]
            answers = [test.collect(engine="streaming").row(0) for test in tests]
            if all(sixteen for sixteen, _ in answers) and any(binary for _, binary in answers):
                found.add(name)
    return frozenset(found)
