"""The log of a run with new rows: a folder of Parquet files, one of the beginning and one of each
refresh.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distilrec.data.dataset import Dataset
from distilrec.data.kept import file_name, is_erased, keep_log
from distilrec.data.readers import Log, open_log, readable
from distilrec.data.schema import Schema
from distilrec.errors import ColumnMissingError, ColumnTypeError, DataError
from distilrec.files import replacing
from distilrec.runs.folder import Run
from distilrec.runs.own_source import OwnSource
from distilrec.runs.places import Places
from distilrec.runs.service_log import ServiceLog
from distilrec.runs.source import new_log, source_of

_PLACE = "distilrec row"  # a column of its own


@dataclass(frozen=True)
class NewRows:
    """Rows that a log has not had yet. frame: the rows, with the columns of the log; name: of where
    they come from; places: their numbers there, from 0; base: the files of the log so far, with
    `before` rows; known: rows that it has already; erased: rows of erased users; notes: what is to
    be said besides.
    """

    frame: pl.DataFrame
    name: str
    places: tuple[int, ...]
    base: tuple[Path, ...]
    before: int
    known: int
    erased: int
    notes: tuple[str, ...]

    def digest(self) -> str:
        """Return a hash of the rows, in hexadecimal digits."""
        content = io.BytesIO()
        self.frame.write_ipc(content)
        return hashlib.sha256(content.getbuffer()).hexdigest()

    def explained(self, problem: DataError, log: Path) -> DataError:
        """Return the error of a log that they were appended to, which says where a row came from.

        log: the folder of that log.
        """
        row = problem.context.get("row")
        if problem.context.get("file") != str(log) or not isinstance(row, int):
            return problem
        if row <= self.before:
            return problem
        place = self.places[row - self.before - 1] + 1
        message = problem.message.replace(str(log), "the log with the new rows")
        message = message.replace(f"row {row:,}", f"row {place:,} of {self.name}")
        context = problem.context | {"file": self.name, "row": place}
        return type(problem)(message, fix=problem.fix, **context)

    def append(self, folder: Path, number: int) -> None:
        """Write the log with the new rows into a folder, as the file of this generation."""
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        for place, file in enumerate(self.base):
            _link_or_copy(file, folder / file_name(place))
        with replacing(folder / file_name(number)) as new:
            self.frame.write_parquet(new)


def find_new_rows(
    run: Run, dataset: Dataset, source: object, erased: Sequence[str], scratch: Path
) -> NewRows:
    """Return the rows of a new log that the log of a run lacks: those of a user, item and event
    type at a time of which there is none. Without a column of times all are new.

    source: a path, a polars frame, a pandas frame, the log of a service, or what the log of the run
    came from, which is asked for its newest rows. erased: users whose rows
    are left out. scratch: a folder. Raises the DataErrors of the readers, ColumnMissingError and
    ColumnTypeError for a new log that does not fit the log of the run, DataError where that has
    changed since the run, and ServiceError.
    """
    schema = source_of(run).schema
    base = _base(run, dataset, schema, erased, scratch)
    given = _given(run, base, source, scratch / "new")
    name = given.name if isinstance(source, str | Path | OwnSource) else "the new rows"
    log, notes = _together(base, given, name, scratch)
    frame = log.slice(base.rows, given.rows, log.schema().names()).with_row_index(_PLACE)
    kept = _without(frame, schema, erased)
    new = kept
    if schema.timestamp is not None:
        key = [schema.user_id, schema.item_id, schema.timestamp]
        key += [] if schema.event_type is None else [schema.event_type]
        # As text: two files may hold the same times in different types
        before = log.scan().slice(0, base.rows).select(pl.col(key).cast(pl.String))
        as_text = kept.lazy().with_columns(pl.col(key).cast(pl.String))
        lacking = as_text.join(before, on=key, how="anti", nulls_equal=True).select(_PLACE)
        with readable(base.name, scratch):
            new = kept.join(lacking.collect(), on=_PLACE, how="semi", maintain_order="left")
    return NewRows(
        new.drop(_PLACE),
        f"what was asked of {given.name}" if isinstance(source, OwnSource) else name,
        tuple(new[_PLACE]),
        base.files,
        base.rows,
        kept.height - new.height,
        frame.height - kept.height,
        (*given.notes, *notes),
    )


def _given(run: Run, base: Log, source: object, scratch: Path) -> Log:
    """Return the new log."""
    schema = source_of(run).schema
    if isinstance(source, OwnSource):
        return source.since(base, schema, scratch)
    if isinstance(source, ServiceLog):
        source = source.rows_for(base, schema)
    return new_log(run, source).log.open(scratch)


def _base(run: Run, dataset: Dataset, schema: Schema, erased: Sequence[str], scratch: Path) -> Log:
    """Return the log of a run as files."""
    if run.places.log.is_dir():
        return open_log(run.places.log, scratch)
    (scratch / "base").mkdir()
    opened = source_of(run).log.open(scratch / "base")
    if opened.rows != dataset.info.cleaning_report.rows_in:
        raise DataError(
            f"{opened.name} has {opened.rows:,} rows, and had "
            f"{dataset.info.cleaning_report.rows_in:,} when the run was prepared",
            fix="give the new rows in a file of their own, and leave the log of the run as it was "
            "until the first refresh",
            file=opened.name,
        )
    with readable(opened.name, scratch):
        keep_log(opened, schema, erased, scratch / "log")
    return open_log(scratch / "log", scratch)


def _together(base: Log, given: Log, name: str, scratch: Path) -> tuple[Log, list[str]]:
    """Return the log and the new rows behind it, read with one type for each column."""
    columns, there = base.schema().names(), given.schema().names()
    for column in columns:
        if column not in there:
            raise ColumnMissingError(
                f"{name} has no column {column!r}, which the log of the run has; it has: "
                f"{', '.join(there)}",
                fix="give the new rows with the columns of the log",
                file=name,
                column=column,
            )
    folder = scratch / "together"
    folder.mkdir()
    for place, file in enumerate(base.files):
        _link_or_copy(file, folder / file_name(place))
    with readable(name, scratch):
        given.scan().select(columns).sink_parquet(folder / file_name(len(base.files)))
    try:
        log = open_log(folder, scratch)
    except ColumnTypeError as problem:
        column = str(problem.context.get("column"))
        raise ColumnTypeError(
            f"{name}: column {column!r} is of another type than in the log of the run "
            f"({given.schema()[column]}, and {base.schema()[column]})",
            fix="write the new rows as the log was written",
            file=name,
            column=column,
        ) from None
    unused = [column for column in there if column not in columns]
    notes = [f"{name}: left out, as the log of the run lacks them: {', '.join(unused)}"]
    return log, notes if unused else []


def _without(frame: pl.DataFrame, schema: Schema, erased: Sequence[str]) -> pl.DataFrame:
    return frame.filter(~is_erased(schema, erased))


def _link_or_copy(file: Path, target: Path) -> None:
    """Let a file, which is never changed where it is, stand in a second folder."""
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)


@contextmanager
def scratch_of(places: Places) -> Iterator[Path]:
    """Yield an empty folder on the disk of the generations, which goes at the end of the block."""
    folder = places.generations / "new-rows"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
