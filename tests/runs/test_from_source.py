"""New rows from the source that the log of a run came from, which is asked only for the newest."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import polars as pl
import pytest

from distilrec import runs
from distilrec.cli.app import main
from distilrec.data.queries import Query
from distilrec.data.tables import DeltaTable, IcebergTable
from distilrec.errors import (
    ColumnMissingError,
    ConfigError,
    SourceUnavailableError,
)
from distilrec.runs.config import RefreshConfig, RunConfig
from distilrec.runs.generations import Generations
from distilrec.runs.new_rows import NewRows, find_new_rows
from distilrec.runs.refreshing import _own_source
from tests.small_run import SCHEMA, small_config, tables

LOG = tables()["log"].sort("timestamp", maintain_order=True)
EARLY, LATE = LOG.head(-60), LOG.tail(60)
OVERLAP = 5_000_000.0  # the log is sparse: some rows lie in it
NEWEST = EARLY["timestamp"].max()
SELECT = (
    "select customer as user_id, item as item_id, at as timestamp, what as event_type from orders"
)


class Source:
    """A source of the log that grows. form: its times."""

    form = staticmethod(lambda seconds: seconds)
    schema = SCHEMA

    def add(self, rows: pl.DataFrame) -> None: ...
    def run(self, statement: str) -> None: ...


class Database(Source):
    def __init__(
        self, run, address: str, password: str | None = None, kind: str = "bigint"
    ) -> None:
        self.run, self.kind = run, kind
        self.place = Query(SELECT + " where item <> '%' -- 50% {};\n;", address, password)
        run("drop table if exists orders")
        run(
            f"create table orders (customer varchar(20), item varchar(20), at {kind}, what varchar(9))"
        )

    def add(self, rows: pl.DataFrame) -> None:
        values = ", ".join(f"('{u}', '{i}', {self.at(t)}, '{e}')" for u, i, t, e in rows.rows())
        self.run(f"insert into orders values {values}")

    def at(self, seconds: int) -> str:
        if self.kind == "bigint":
            return str(seconds)
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
        return f"'{moment}+00'" if self.kind == "timestamptz" else f"'{moment}'"


class Files(Source):
    """Parquet or CSV files, one more each time, in a folder with partitions or by a pattern."""

    def __init__(self, folder: Path, pattern: str, write: str) -> None:
        self.folder, self.place, self.write = folder, str(folder / pattern), write
        self.schema = SCHEMA
        if "day" in write:
            self.schema = msgspec.structs.replace(SCHEMA, timestamp="day")
        self.added = 0

    def add(self, rows: pl.DataFrame) -> None:
        self.added += 1
        if self.write == "csv":
            self.folder.mkdir(exist_ok=True)
            rows.write_csv(self.folder / f"part-{self.added}.csv")
            return
        day = pl.from_epoch("timestamp").dt.strftime("%Y-%m-%d").alias("day")
        for (name,), part in rows.with_columns(day).group_by("day"):
            file = self.folder / f"day={name}" / f"part-{self.added}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            part.drop("day", *(["timestamp"] if self.write == "day" else [])).write_parquet(file)


class Delta(Source):
    def __init__(self, folder: Path) -> None:
        self.place = DeltaTable(str(folder / "orders"))

    def add(self, rows: pl.DataFrame) -> None:
        rows.write_delta(self.place.table, mode="append")


class Iceberg(Source):
    def __init__(self, folder: Path, monkeypatch) -> None:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.utils.config import Config

        uri = f"sqlite:///{folder}/catalog.db"
        self.catalog = load_catalog("shop", type="sql", uri=uri, warehouse=f"file://{folder}")
        self.catalog.create_namespace("web")
        schema = LOG.to_arrow().schema
        self.table = self.catalog.create_table("web.orders", schema=schema)
        self.place = IcebergTable("web.orders", "shop")
        monkeypatch.setenv("PYICEBERG_CATALOG__SHOP__TYPE", "sql")
        monkeypatch.setenv("PYICEBERG_CATALOG__SHOP__URI", uri)
        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # read at its import

    def add(self, rows: pl.DataFrame) -> None:
        self.table.append(rows.to_arrow())


@pytest.fixture
def delta(tmp_path):
    return lambda: Delta(tmp_path)


@pytest.fixture
def iceberg(tmp_path, monkeypatch):
    made = Iceberg(tmp_path, monkeypatch)
    yield lambda: made
    made.catalog.engine.dispose()


@pytest.fixture
def sqlite(tmp_path):
    def run(statement: str) -> None:
        with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
            connection.execute(statement)
            connection.commit()

    return lambda kind="bigint": Database(run, f"sqlite:///{tmp_path}/shop.db", kind=kind)


@pytest.fixture
def on_postgresql(postgresql, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", postgresql.password)
    return lambda kind="bigint": Database(postgresql.run, postgresql.address, "SHOP_PASSWORD", kind)


@pytest.fixture
def on_mariadb(mariadb, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", mariadb.password)
    return lambda kind="bigint": Database(mariadb.run, mariadb.address, "SHOP_PASSWORD", kind)


@pytest.fixture
def files(tmp_path):
    return lambda *form: Files(tmp_path / "days", *form)


def config(source: Source, folder: Path, **refreshed) -> RunConfig:
    made = tables()
    for name in ("users", "items"):
        made[name].write_csv(folder / f"{name}.csv")
    whole = small_config(folder)
    data = msgspec.structs.replace(whole.data, interactions=source.place, schema=source.schema)
    refreshing = RefreshConfig(**{"overlap": OVERLAP, **refreshed})
    return msgspec.structs.replace(whole, data=data, refresh=refreshing)


def prepared(source: Source, folder: Path, **refreshed) -> runs.Run:
    return runs.prepare(config(source, folder, **refreshed), folder / "run")[0]


def new_rows(run: runs.Run, scratch: Path) -> NewRows:
    scratch.mkdir()
    own = _own_source(run, run.config.refresh)
    return find_new_rows(run, runs.open_data(run), own, [], scratch)


SOURCES = [
    pytest.param("sqlite", (), id="sqlite"),
    pytest.param("sqlite", ("text",), id="sqlite-text"),
    pytest.param("on_postgresql", (), id="postgresql", marks=pytest.mark.postgresql),
    pytest.param("on_postgresql", ("timestamptz",), id="timestamptz", marks=pytest.mark.postgresql),
    pytest.param("on_postgresql", ("timestamp",), id="timestamp", marks=pytest.mark.postgresql),
    pytest.param("on_mariadb", (), id="mariadb", marks=pytest.mark.mariadb),
    pytest.param("on_mariadb", ("datetime",), id="datetime", marks=pytest.mark.mariadb),
    pytest.param("files", ("", "parquet"), id="folder"),
    pytest.param("files", ("*/*.parquet", "parquet"), id="pattern"),
    pytest.param("files", ("*.csv", "csv"), id="csv"),
    pytest.param("files", ("", "day"), id="partition-is-the-time"),
    pytest.param("delta", (), id="delta", marks=pytest.mark.adapters),
    pytest.param("iceberg", (), id="iceberg", marks=pytest.mark.adapters),
]


@pytest.mark.parametrize(("kind", "form"), SOURCES)
def test_a_source_is_asked_for_its_newest_rows(request, kind, form, tmp_path):
    source = request.getfixturevalue(kind)(*form)
    source.add(EARLY)
    run = prepared(source, tmp_path)
    assert pl.read_parquet(run.places.log / "*.parquet").height == EARLY.height
    # Rows that came late: in the overlap, and before it, where they are not seen
    late = EARLY.tail(1).with_columns(pl.lit("late").alias("user_id"))
    seen = late.with_columns(pl.col("timestamp") - int(OVERLAP) + 200_000)
    unseen = late.with_columns(pl.col("timestamp") - int(OVERLAP) - 200_000)
    source.add(pl.concat([LATE, seen, unseen]))
    new = new_rows(run, tmp_path / "scratch")
    assert new.frame.height == LATE.height + 1
    assert set(new.frame["user_id"]) == {*LATE["user_id"], "late"}
    in_overlap = EARLY.filter(pl.col("timestamp") >= NEWEST - OVERLAP).height
    # Text is asked by its day, so the source may return some rows more, which the log has
    assert in_overlap <= new.known <= in_overlap + 20
    assert 0 < in_overlap < EARLY.height / 2
    note = f"{new.known + LATE.height + 1:,} rows"
    assert any(note in said and "since" in said for said in new.notes), new.notes


def test_rows_from_the_future_hide_nothing(sqlite, tmp_path):
    source = sqlite()
    source.add(EARLY)
    ahead = EARLY.tail(1).with_columns(pl.lit(int(time.time()) + 3_600).alias("timestamp"))
    source.add(ahead)
    run = prepared(source, tmp_path)
    source.add(LATE)
    new = new_rows(run, tmp_path / "scratch")
    assert new.frame.height == LATE.height


def test_no_new_row_and_repeated_rows(sqlite, tmp_path):
    source = sqlite()
    source.add(EARLY)
    run = prepared(source, tmp_path, overlap=0)
    source.add(EARLY.tail(3))
    new = new_rows(run, tmp_path / "scratch")
    assert new.frame.is_empty() and new.known == 2  # the newest row, twice
    source.run(f"delete from orders where at >= {NEWEST}")
    new = new_rows(run, tmp_path / "again")
    assert new.frame.is_empty() and new.known == 0


@pytest.mark.parametrize(
    ("statement", "error", "match"),
    [
        ("drop table orders", ConfigError, "is refused: no such table"),
        ("alter table orders rename column at to moment", ConfigError, "no such column: at"),
    ],
)
def test_a_source_that_has_changed_is_refused(sqlite, tmp_path, statement, error, match):
    source = sqlite()
    source.add(EARLY)
    run = prepared(source, tmp_path)
    source.run(statement)
    with pytest.raises(error, match=match):
        new_rows(run, tmp_path / "scratch")


def test_files_that_lack_a_column_are_refused(files, tmp_path):
    source = files("*.csv", "csv")
    source.add(EARLY)
    run = prepared(source, tmp_path)
    (source.folder / "part-1.csv").unlink()
    source.add(LATE.drop("event_type"))
    with pytest.raises(ColumnMissingError, match="has no column 'event_type'"):
        new_rows(run, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("pattern", "write", "times"),
    [
        ("*.csv", "csv", [None, "soon", "2026-01-01T10:00:00", "1600"]),
        ("*/*.parquet", "parquet", [None, 1600]),
    ],
)
def test_no_row_is_left_out_for_its_time_uncounted(files, tmp_path, pattern, write, times):
    """What has no time, or one of another form, comes too: the cleaning counts or refuses it."""
    source = files(pattern, write)
    source.add(EARLY)
    run = prepared(source, tmp_path)
    odd = LATE.head(len(times)).with_columns(timestamp=pl.Series(times, strict=False))
    source.add(odd)
    new = new_rows(run, tmp_path / "scratch")
    assert new.frame["user_id"].sort().to_list() == odd["user_id"].sort().to_list()


@pytest.mark.postgresql
def test_a_source_that_is_away_changes_nothing(on_postgresql, tmp_path, monkeypatch):
    source = on_postgresql()
    source.add(EARLY)
    run = prepared(source, tmp_path)
    monkeypatch.setenv("SHOP_PASSWORD", "another one")
    with pytest.raises(SourceUnavailableError, match="no connection"):
        new_rows(run, tmp_path / "scratch")
    monkeypatch.delenv("SHOP_PASSWORD")
    with pytest.raises(ConfigError, match="SHOP_PASSWORD is not set"):
        new_rows(run, tmp_path / "again")


def test_times_that_do_not_sort_are_refused(files, tmp_path):
    form = pl.from_epoch("timestamp").dt.strftime("%d/%m/%Y %H:%M:%S").alias("timestamp")
    source = files("*.csv", "csv")
    source.add(EARLY.with_columns(form))
    run = prepared(source, tmp_path)
    with pytest.raises(ConfigError, match="cannot be compared as text"):
        new_rows(run, tmp_path / "scratch")


def test_when_a_run_keeps_its_log(files, sqlite, tmp_path):
    source = files("*.csv", "csv")
    source.add(EARLY)
    run = prepared(source, tmp_path)
    assert (run.places.log / "000000.parquet").is_file()
    run = prepared(source, tmp_path, keep_log=False)
    assert not run.places.log.exists()
    with pytest.raises(ConfigError, match="has not kept its log") as raised:
        new_rows(run, tmp_path / "scratch")
    assert "keep_log = true" in raised.value.fix
    source.place = str(source.folder / "part-1.csv")  # one file need not be kept, and may be
    assert not prepared(source, tmp_path).places.log.exists()
    assert prepared(source, tmp_path, keep_log=True).places.log.exists()
    with pytest.raises(ConfigError, match="with pseudonyms keeps no log"):
        whole = config(source, tmp_path, keep_log=True)
        data = msgspec.structs.replace(whole.data, pseudonym_key="KEY")
        msgspec.structs.replace(whole, data=data)


def test_erased_users_are_not_in_the_log_that_is_kept(sqlite, tmp_path):
    source = sqlite()
    source.add(EARLY)
    run = prepared(source, tmp_path)
    gone, left = EARLY["user_id"][0], pl.read_parquet(run.places.log)
    assert gone in left["user_id"]
    said = runs.forget_user(run, gone)
    assert any("log: " in line and "rows erased" in line for line in said)
    assert gone not in pl.read_parquet(run.places.log)["user_id"]
    assert gone not in pl.read_parquet(prepared(source, tmp_path).places.log)["user_id"]


@pytest.mark.slow
@pytest.mark.postgresql
def test_every_night_from_a_database_by_the_command_line(on_postgresql, tmp_path, capsys):
    source = on_postgresql("timestamptz")
    source.add(EARLY)
    runs.run_all(config(source, tmp_path), tmp_path / "run")
    command = ["refresh", "--run", str(tmp_path / "run"), "--from-source"]
    main(command)
    assert "no new rows" in capsys.readouterr().out
    source.add(LATE.head(30))
    with suppress(SystemExit):  # the gate of so small a log may say no by chance
        main(command)
    assert "\n30 new rows" in "\n" + capsys.readouterr().err
    Generations(tmp_path / "run").switch(1)
    source.add(LATE.tail(30))
    first = runs.open_run(tmp_path / "run")
    generation = runs.open_run(tmp_path / "run/generations/1")
    (tmp_path / "scratch").mkdir()
    own, erased = _own_source(first, first.config.refresh), LATE["user_id"][-1]
    new = find_new_rows(generation, runs.open_data(generation), own, [erased], tmp_path / "scratch")
    rows = (LATE.tail(30)["user_id"] == erased).sum()
    assert new.frame.height == 30 - rows
    assert new.erased >= rows > 0
    assert [file.name for file in new.base] == ["000000.parquet", "000001.parquet"]
    assert not (tmp_path / "run/generations/new-rows").exists()
