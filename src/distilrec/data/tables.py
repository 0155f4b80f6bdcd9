"""Tables whose folder holds more than their rows: Delta and Iceberg. Which files are the table, and
which rows of them are deleted, is known to their own libraries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import polars as pl

from distilrec.data.paths import DELTA_LOG
from distilrec.errors import (
    ConfigError,
    DistilrecError,
    FileMissingError,
    SourceUnavailableError,
    first_line,
    missing_extra,
)
from distilrec.files import refused_by_system
from distilrec.settings import Positive, Settings

_MISSING = ("FileNotFoundError", "TableNotFoundError", "NoSuchTableError")


class DeltaTable(Settings, frozen=True, tag_field="kind", tag="delta"):
    """A Delta table, in place of a file."""

    table: str
    """Folder of the table, or its address on object storage (`s3://bucket/orders`)."""

    @property
    def name(self) -> str:
        """What messages call the table."""
        return f"the Delta table {self.table}"

    @property
    def short_name(self) -> str:
        """The last part of its path."""
        return self.table.rstrip("/").rpartition("/")[2]

    def relative_to(self, folder: Path) -> DeltaTable:
        """Return the same table, its folder relative to another one."""
        return self if "://" in self.table else DeltaTable(str((folder / self.table).resolve()))

    def scan(self) -> tuple[pl.LazyFrame, str]:
        """Return the newest version of the table, and which one that is."""
        try:
            import deltalake
        except ImportError:
            raise missing_extra("deltalake", "delta") from None
        if "://" not in self.table and not (Path(self.table) / DELTA_LOG).is_dir():
            raise FileMissingError(
                f"{self.table} is no Delta table: it has no folder {DELTA_LOG}",
                fix="check the path; a folder of Parquet files is named by its path alone",
                file=self.table,
            )
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        options = {"aws_allow_http": "true"} if plain and self.table.startswith("s3") else None
        opened = deltalake.DeltaTable(self.table, storage_options=options)
        return pl.scan_delta(opened), f"version {opened.version()}"


class IcebergTable(Settings, frozen=True, tag_field="kind", tag="iceberg"):
    """An Iceberg table, in place of a file."""

    table: str
    """Its name in the catalog (`shop.orders`)."""
    catalog: str | None = None
    """Name of the catalog, whose address and password pyiceberg finds in the environment
    (`PYICEBERG_CATALOG__NAME__URI`) or in its `.pyiceberg.yaml`. Without a catalog, `table` is the
    metadata file of the version to read.
    """
    timeout: Positive = 60.0
    """Seconds that the catalog may take to open the table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.catalog is None and not self.table.endswith(".metadata.json"):
            raise ConfigError(
                f"an Iceberg table without a catalog is read from a metadata file, not from "
                f"{self.table!r}",
                fix="name the catalog, or the newest file metadata/….metadata.json of the table",
                parameter="catalog",
            )

    @property
    def name(self) -> str:
        """What messages call the table."""
        return f"the Iceberg table {self.table}"

    @property
    def short_name(self) -> str:
        """Its name without the namespace, or the folder of its metadata."""
        if self.catalog is not None:
            return self.table.rpartition(".")[2]
        return Path(self.table).parent.parent.name or "log"

    def relative_to(self, folder: Path) -> IcebergTable:
        """Return the same table, its metadata file relative to a folder."""
        if self.catalog is not None or "://" in self.table:
            return self
        return msgspec.structs.replace(self, table=str((folder / self.table).resolve()))

    def scan(self) -> tuple[pl.LazyFrame, str]:
        """Return the current snapshot of the table, and which one that is."""
        try:
            from pyiceberg.catalog import load_catalog
            from pyiceberg.table import StaticTable
        except ImportError:
            raise missing_extra("pyiceberg", "iceberg") from None

        def open_table() -> Any:
            if self.catalog is None:
                return StaticTable.from_metadata(self.table)
            return load_catalog(self.catalog).load_table(self.table)

        opened = self._in_time(open_table)
        snapshot = opened.current_snapshot()
        return pl.scan_iceberg(opened), f"snapshot {snapshot.snapshot_id if snapshot else 'none'}"

    def _in_time(self, open_table: Callable[[], Any]) -> Any:
        """Return the opened table; pyiceberg waits for ever for a catalog that does not answer.
        Raises SourceUnavailableError, and what it raises.
        """
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                answer.set_result(open_table())
            except Exception as problem:
                answer.set_exception(problem)

        Thread(target=run, daemon=True).start()  # which does not hold up the end of the process
        wait([answer], self.timeout)
        if not answer.done():
            raise SourceUnavailableError(
                f"{self.name}: its catalog gave no answer for {self.timeout:g} s",
                fix="check that the catalog runs, and its address, or raise `timeout`",
                parameter="timeout",
            )
        return answer.result()


Table = DeltaTable | IcebergTable


def copy_table(table: Table, target: Path, keep: pl.Expr | None = None) -> str:
    """Write the rows of a table into a Parquet file; return what a report should say of them.

    keep: a condition; files whose statistics say that no row meets it are not read. Raises
    MissingExtraError, FileMissingError where there is no such table, and SourceUnavailableError
    where it cannot be read.
    """
    with _explained(table, target):
        rows, version = table.scan()
        (rows if keep is None else rows.filter(keep)).sink_parquet(target)
    return f"{table.name} was read in its {version}"


@contextmanager
def _explained(table: Table, scratch: Path) -> Iterator[None]:
    """Turn the errors of the libraries, which have no common base, into ours."""
    try:
        yield
    except DistilrecError:
        raise
    except Exception as problem:
        if refused := refused_by_system(problem, scratch):
            raise refused from None
        if type(problem).__name__ in _MISSING:
            raise FileMissingError(
                f"{table.name} does not exist, or a file of it is missing: {first_line(problem)}",
                fix="check its name and the catalog",
                file=table.table,
            ) from None
        raise SourceUnavailableError(
            f"{table.name} cannot be read: {first_line(problem)}",
            fix="check its name, and the catalog, endpoint and credentials in the environment",
            file=table.table,
        ) from None
