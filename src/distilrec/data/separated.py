"""Separated text (comma, tab, semicolon, blank, or `::`): every record of the file becomes a row,
or its line is named.

Where no quote and no escape occurs, a line is a record and polars reads the file. Otherwise the csv
module of Python reads it strictly, because a quote in the wrong place must not swallow the lines up
to the next one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from distilrec.data.lines import SEPARATORS, PlainText, TextFormat
from distilrec.errors import ColumnTypeError, ConfigError, NotEnoughDataError

_BATCH = 100_000
_LONGEST_CELL = 1 << 24


@dataclass(frozen=True)
class Rows:
    """A table that is not read yet. notes: what a report should say about its file; count: the rows
    there must be, where that is known before they are read; strictly: reads the file again where
    polars cannot, and names the line.
    """

    scan: pl.LazyFrame
    notes: tuple[str, ...] = ()
    count: int | None = None
    strictly: Callable[[], Rows] | None = None


@dataclass(frozen=True)
class _Dialect:
    """How the cells of a line are told apart. declared: the user has set the quote."""

    separator: str
    quote: str | None
    escape: str | None
    declared: bool

    def reader(self, lines: Iterator[str], *, strict: bool = True) -> Iterator[list[str]]:
        return csv.reader(
            lines,
            delimiter=self.separator,
            quotechar=self.quote,
            escapechar=self.escape,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            strict=strict,
        )


def scan_separated(
    text: PlainText,
    form: TextFormat,
    columns: Sequence[str] | None,
    scratch: Path,
    separator: str | None = None,
) -> Rows:
    """Return the rows of a file with a header line, or without one where `columns` names the
    fields; all cells are text.

    separator: found from the first line if left out. Raises ColumnTypeError that names the line of
    a record that cannot be right, and ConfigError for a wrong number of `columns`.
    """
    csv.field_size_limit(_LONGEST_CELL)
    first = _first_line(text)
    dialect = _dialect(first, form, columns, separator)
    names, header_lines = _names(text, dialect, columns)
    strictly = partial(_strictly, text, dialect, names, header_lines, scratch)
    simple = (
        (dialect.quote is None or not text.counts[dialect.quote])
        and (dialect.escape is None or not text.counts[dialect.escape])
        and not text.blank
    )
    if not simple:
        return strictly()
    rows = text.lines - header_lines
    cells = text.counts[dialect.separator] - (first.count(dialect.separator) if header_lines else 0)
    if not rows or cells != rows * (len(names) - 1):
        return strictly()
    scan = pl.scan_csv(
        text.file,
        separator=dialect.separator,
        has_header=False,
        skip_lines=header_lines,
        schema=dict.fromkeys(names, pl.String),
        quote_char=None,
        glob=False,
    )
    # A line with too many fields may hide behind one with too few.
    return Rows(scan, (), rows, strictly)


def scan_double_colons(text: PlainText, columns: Sequence[str] | None, scratch: Path) -> Rows:
    """Return the rows of a MovieLens file: `::` between the fields, no header, no quotes."""
    if columns is None:
        raise ConfigError(
            f"{text.source} has no header line",
            fix="name its columns, for example user_id,item_id,rating,timestamp",
            parameter="columns",
        )

    def records() -> Iterator[list[str]]:
        with text.file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                cells = line.rstrip("\r\n").split("::")
                if cells == [""]:
                    continue
                if len(cells) != len(columns):
                    raise ColumnTypeError(
                        f"{text.source}, line {number:,}: {len(cells)} fields where "
                        f"{len(columns)} are declared "
                        f"({', '.join(columns)})",
                        fix="correct the line, or the list of columns",
                        file=str(text.source),
                        row=number,
                    )
                yield cells

    return Rows(_stored(records(), list(columns), scratch), count=text.lines - text.blank)


def _first_line(text: PlainText) -> str:
    with text.file.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip("\r\n"):
                return line.rstrip("\r\n")
    raise NotEnoughDataError(
        f"{text.source} is empty", fix="give a file with at least a few rows", file=str(text.source)
    )


def _dialect(
    first: str, form: TextFormat, columns: Sequence[str] | None, separator: str | None
) -> _Dialect:
    # Separators in quoted names do not count.
    outside = "".join(first.split('"')[::2]) if form.quote != "" else first
    marks = [mark for mark in SEPARATORS if mark in outside]
    if columns is not None:  # the one that gives as many fields as there are names
        marks = [mark for mark in marks if outside.count(mark) == len(columns) - 1] or marks
    chosen = separator or (marks[0] if marks else ",")
    quote = form.quote
    if quote is None:
        # A tab-separated file has quotes around cells only where its header has, as R writes it.
        cells = first.split(chosen)
        wrapped = all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
        quote = (
            '"' if separator is None and (chosen != "\t" or (wrapped and columns is None)) else ""
        )
    return _Dialect(chosen, quote or None, form.escape or None, form.quote is not None)


def _names(
    text: PlainText, dialect: _Dialect, columns: Sequence[str] | None
) -> tuple[list[str], int]:
    """Return the names of the columns, and how many lines the header takes."""
    lines = _Lines(text.file)
    try:
        first = next(record for record in dialect.reader(lines) if record)
    except csv.Error as problem:
        raise _broken(text, dialect, 1, lines.number, str(problem)) from None
    finally:
        lines.close()
    if columns is not None:
        if len(first) != len(columns):
            raise ConfigError(
                f"{text.source} has {len(first)} columns, {len(columns)} names were given",
                fix="name every column",
                file=str(text.source),
                parameter="columns",
            )
        return distinct(columns, text.source), 0
    return distinct([name.strip() for name in first], text.source), lines.number


def distinct(names: Sequence[str], source: object) -> list[str]:
    """Return the names of columns, those without one numbered. Raises ColumnTypeError for a name
    that is there twice.
    """
    found: list[str] = []
    for number, name in enumerate(names):
        name = name or f"Unnamed: {number}"
        if name in found:
            raise ColumnTypeError(
                f"{source} has two columns {name!r}",
                fix="rename one of them, or leave it out",
                file=str(source),
                column=name,
            )
        found.append(name)
    return found


class _Lines:
    """The lines of a file as the csv module takes them. number: of the last one; taken: those of
    the current record.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.open(encoding="utf-8", newline="\n")
        self.number = 0
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        self.taken.append(line)
        return line

    def close(self) -> None:
        self._file.close()


@dataclass
class _Short:
    """Lines with fewer fields than the header."""

    count: int = 0
    first: int = 0

    def notes(self, source: Path) -> tuple[str, ...]:
        if not self.count:
            return ()
        return (
            f"{source}: {self.count:,} lines have fewer fields than the header, the first is line "
            f"{self.first:,}: "
            "the missing ones are taken as empty",
        )


def _strictly(
    text: PlainText, dialect: _Dialect, names: list[str], header_lines: int, scratch: Path
) -> Rows:
    short = _Short()
    scan = _stored(_records(text, dialect, len(names), header_lines, short), names, scratch)
    return Rows(scan, short.notes(text.source))


def _records(
    text: PlainText, dialect: _Dialect, width: int, header_lines: int, short: _Short
) -> Iterator[list[str]]:
    lines = _Lines(text.file)
    reader = dialect.reader(lines)
    try:
        while True:
            begins = lines.number + 1
            lines.taken.clear()
            try:
                record = next(reader, None)
            except csv.Error as problem:
                raise _broken(text, dialect, begins, lines.number, str(problem)) from None
            if record is None:
                return
            if not record or lines.number <= header_lines:
                continue
            if len(record) != width:
                if len(record) > width or len(lines.taken) > 1:
                    raise _wrong_width(text, begins, len(record), width)
                short.first = short.first or begins
                short.count += 1
                record += [""] * (width - len(record))
            elif (
                len(lines.taken) > 1
                and not dialect.declared
                and _is_one_record_a_line(lines.taken, dialect, width)
            ):
                raise ColumnTypeError(
                    f"{text.source}, line {begins:,}: a quote opens a cell that ends in line "
                    f"{lines.number:,}, and every "
                    f"line of it is a record of {width} fields by itself",
                    fix='set quote = "" in [data] if quotes are ordinary characters there, or '
                    "quote = '\"' if that cell really holds these lines",
                    file=str(text.source),
                    row=begins,
                )
            yield record
    finally:
        lines.close()


def _is_one_record_a_line(lines: Sequence[str], dialect: _Dialect, width: int) -> bool:
    """Whether the lines of one record look like as many records: each has all fields, with numbers
    in the same places; or, without numbers, no blank after a separator, as a text has after a
    comma.
    """
    records = [next(dialect.reader(iter([line]), strict=False), []) for line in lines]
    if any(len(cells) != width for cells in records):
        return False
    kinds = [{_is_number(cells[position]) for cells in records} for position in range(width)]
    if any(len(kind) > 1 for kind in kinds):
        return False
    prose = any(cell.startswith(" ") for cells in records[1:] for cell in cells[1:])
    return {True} in kinds or not prose


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _broken(
    text: PlainText, dialect: _Dialect, begins: int, ends: int, problem: str
) -> ColumnTypeError:
    where = f"{text.source}, line {begins:,}"
    if "unexpected end" in problem:
        message = "a quote opens a cell that is not closed before the end of the file"
    elif "expected after" in problem:
        message = (
            f"after the closing quote of a cell, in line {ends:,}, comes more than a separator"
        )
    else:
        message = f"this record cannot be read: {problem}"
    fix = (
        'double the quotes inside quoted cells; or set quote = "" in [data] if quotes are ordinary '
        "characters"
    )
    if dialect.escape is None and text.counts['"']:
        fix += r', or escape = "\\" if they are written as \" (Spark does)'
    return ColumnTypeError(f"{where}: {message}", fix=fix, file=str(text.source), row=begins)


def _wrong_width(text: PlainText, line: int, fields: int, width: int) -> ColumnTypeError:
    return ColumnTypeError(
        f"{text.source}, line {line:,}: {fields} fields where the header names {width}",
        fix="put cells that hold the separator (decimal commas, thousands) into quotes, or "
        "correct the header; "
        "a column of row numbers needs a name too",
        file=str(text.source),
        row=line,
    )


def _stored(records: Iterator[list[str]], names: list[str], scratch: Path) -> pl.LazyFrame:
    """Write records as Parquet files in a folder, a batch each, read lazily."""
    store = Batches(scratch)
    batch: list[list[str]] = []
    schema = dict.fromkeys(names, pl.String)

    def write() -> None:
        columns = list(zip(*batch, strict=True)) or [()] * len(names)
        frame = pl.DataFrame(dict(zip(names, map(list, columns), strict=True)), schema=schema)
        store.write(frame.with_columns(pl.when(pl.all() != "").then(pl.all())))
        batch.clear()

    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            write()
    if batch or not store.files:
        write()
    return store.scan()


@dataclass
class Batches:
    """Tables with the same columns, written one after the other as Parquet files of a folder that
    holds no others.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)

    def write(self, frame: pl.DataFrame) -> None:
        file = self.folder / f"batch-{len(self.files):06d}.parquet"
        frame.write_parquet(file, compression="lz4")
        self.files.append(file)

    def scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.files, glob=False)
