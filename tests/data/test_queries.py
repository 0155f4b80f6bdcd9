"""Tables from SQLite, PostgreSQL and MariaDB, on real servers."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import polars as pl
import pytest

from distilrec.cli import main
from distilrec.data import queries
from distilrec.data.dataset import load_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.data.queries import Query
from distilrec.data.readers import open_log, read_table
from distilrec.data.schema import Schema
from distilrec.errors import (
    ColumnMissingError,
    ColumnTypeError,
    ConfigError,
    DataError,
    DistilrecError,
    FileMissingError,
    MissingExtraError,
    NotEnoughDataError,
    SourceUnavailableError,
)
from distilrec.runs.config import read_config
from distilrec.runs.folder import choices_of
from tests import servers

EVENTS = [(f"u{user}", f"i{(user * step) % 11}", step) for user in range(9) for step in range(7)]
CREATE = "create table events (buyer varchar(20), item varchar(20), moment bigint)"
INSERT = "insert into events values " + ", ".join(f"('{u}', '{i}', {at})" for u, i, at in EVENTS)
SELECT = "select buyer as user_id, item as item_id, moment as timestamp from events"
ORDERED = SELECT + " order by moment, buyer"
EXPECTED = pl.DataFrame(EVENTS, ["user_id", "item_id", "timestamp"], orient="row")
DATA = """
[data.interactions]
kind = "sql"
database = "{database}"
query = "{query}"
{more}
[data.schema]
timestamp = "timestamp"
"""


@pytest.fixture
def shop(tmp_path) -> Path:
    path = tmp_path / "my shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(CREATE)
        connection.execute(INSERT)
        connection.commit()
    return path


def sqlite(path: Path, query: str = ORDERED) -> Query:
    return Query(query, f"sqlite:///{str(path).replace(' ', '%20')}")


@pytest.fixture(scope="module")
def filled_postgresql(postgresql: servers.PostgreSQL) -> servers.PostgreSQL:
    postgresql.run(CREATE)
    postgresql.run(INSERT)
    return postgresql


@pytest.fixture(scope="module")
def filled_mariadb(mariadb: servers.MariaDB) -> servers.MariaDB:
    mariadb.run(CREATE)
    mariadb.run(INSERT)
    return mariadb


@pytest.fixture(
    params=[
        pytest.param("filled_postgresql", marks=pytest.mark.postgresql),
        pytest.param("filled_mariadb", marks=pytest.mark.mariadb),
    ]
)
def server(request, monkeypatch) -> servers.PostgreSQL | servers.MariaDB:
    filled = request.getfixturevalue(request.param)
    monkeypatch.setenv("SHOP_PASSWORD", filled.password)
    return filled


def on(server, query: str = ORDERED) -> Query:
    return Query(query, server.address, "SHOP_PASSWORD")


def test_sqlite_gives_the_rows_of_a_file(shop, monkeypatch, tmp_path):
    monkeypatch.setattr(queries, "_BATCH", 10)  # several files
    read = read_table(sqlite(shop))
    assert read.sort("timestamp", "user_id").equals(EXPECTED.sort("timestamp", "user_id"))
    log = open_log(sqlite(shop), tmp_path)
    assert log.slice(9, 3, ["timestamp"]).equals(read.select("timestamp")[9:12])
    schema = Schema(timestamp="timestamp", timestamp_format="seconds")
    assert len(prepare_dataset(sqlite(shop), schema).items) == len(EVENTS)


def test_values_of_sqlite(tmp_path):
    path = tmp_path / "odd.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table odd (a, b, c)")
        rows = [(1, b"\xff\x00", None), ("x", "text", None), (2.5, None, None)]
        connection.executemany("insert into odd values (?, ?, ?)", rows)
        connection.execute("insert into odd select 9, cast(x'61ff' as text), null")
        connection.commit()
    read = read_table(sqlite(path, "select * from odd"))
    assert read["a"].to_list() == ["1", "x", "2.5", "9"]
    assert read["b"].to_list()[3] == "a\N{REPLACEMENT CHARACTER}"  # no id may hold it
    assert read["c"].to_list() == [None] * 4


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("select nope from events", ConfigError, "is refused: no such column: nope"),
        ("selec 1", ConfigError, "is refused: near"),
        ("delete from events", ConfigError, "readonly database"),
        ("select * from events where moment > 99", NotEnoughDataError, "returned no rows"),
        ("select item, item from events", ColumnTypeError, "two columns 'item'"),
        ("pragma synchronous = 1", ConfigError, "returns no table"),
    ],
)
def test_queries_that_give_no_table(shop, query, error, message):
    with pytest.raises(error, match=message):
        read_table(sqlite(shop, query))


def test_a_missing_column_and_a_missing_file(shop, tmp_path):
    with pytest.raises(ColumnMissingError, match="the query on sqlite:.* has no column 'user_id'"):
        prepare_dataset(sqlite(shop, "select item as item_id from events"), Schema())
    with pytest.raises(FileMissingError, match=r"none\.db does not exist"):
        read_table(sqlite(tmp_path / "none.db"))
    (tmp_path / "text.db").write_text("this is not a database, it is text" * 50)
    with pytest.raises(DistilrecError, match="not a database"):
        read_table(sqlite(tmp_path / "text.db"))


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("postgresql://shop:geheim@db/shop", "holds a password"),
        ("mysql://shop:geheim@db/shop", "holds a password"),
        ("postgresql://shop@db/shop?password=geheim", "holds a password"),
        ("postgresql://shop:gehe/im@db/shop", "not the address"),
        ("postgresql://shop:12/geheim@db/shop", "not the address"),
        ("postgresql://shop:12#geheim@db/shop", "not the address"),
        ("host=db password=geheim", "not the address"),
        ("oracle://db/geheim", "not the address"),
        ("postgresql:///shop", "names no host"),
        ("sqlite://host/shop.db", "names a host"),
        ("postgresql://db", "not the address"),
    ],
)
def test_addresses_that_are_refused_without_showing_them(database, message, tmp_path, capsys):
    with pytest.raises(ConfigError, match=message) as caught:
        Query(SELECT, database)
    assert "geheim" not in str(caught.value)
    path = tmp_path / "my.toml"
    path.write_text(DATA.format(database=database, query=SELECT, more=""))
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert "geheim" not in str(caught.value)


def test_settings(tmp_path, shop, capsys):
    path = tmp_path / "my.toml"
    text = DATA.format(database="sqlite:///my%20shop.db", query=ORDERED, more="")
    path.write_text(text)
    config = read_config(path)
    assert config.data.interactions == sqlite(shop)
    path.write_text(text.replace("order by", "ORDER BY"))
    assert choices_of(read_config(path)) != choices_of(config)
    path.write_text(text.replace("query", "qery"))
    with pytest.raises(ConfigError, match=r"no key `qery` in \[data.interactions\]") as caught:
        read_config(path)
    assert "did you mean `query`" in caught.value.fix


def test_a_run_from_sqlite_with_items_by_the_command_line(tmp_path, shop, capsys):
    path = tmp_path / "my.toml"
    data = DATA.format(database="sqlite:///my%20shop.db", query=SELECT, more="")
    items = '{ kind = "sql", database = "sqlite:///my%20shop.db", query = "select distinct item from events" }'
    path.write_text(
        f'[data]\nitems = {items}\n{data}timestamp_format = "seconds"\nitem_key = "item"\n'
    )
    assert main(["prepare", "--config", str(path), "--run", "run"]) in (None, 0)
    notes = load_dataset(Path("run/data")).info.notes
    said = " ".join((*notes, *load_dataset(Path("run/data")).info.cleaning_report.lines()))
    assert "returned 63 rows with the SHA-256" in said
    assert "has no ORDER BY" in said


def test_the_hash_follows_the_content(shop, tmp_path):
    first, second = (open_log(sqlite(shop), tmp_path / name).notes for name in "ab")
    assert first == second
    with closing(sqlite3.connect(shop)) as connection:
        connection.execute("update events set moment = 99 where buyer = 'u1' and moment = 3")
        connection.commit()
    assert open_log(sqlite(shop), tmp_path / "c").notes != first


def test_servers_give_the_rows_of_a_file(server, monkeypatch, tmp_path):
    monkeypatch.setattr(queries, "_BATCH", 25)
    read = read_table(on(server))
    assert read.sort("timestamp", "user_id").equals(EXPECTED.sort("timestamp", "user_id"))
    for statement in ("delete from events", "insert into events values ('x', 'y', 1)"):
        with pytest.raises((ConfigError, DataError)):
            read_table(on(server, statement))
    assert read_table(on(server)).height == len(EVENTS)


def test_what_servers_refuse(server, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="is refused: .*nope"):
        read_table(on(server, "select nope from events"))
    with pytest.raises(ConfigError, match="is refused"):
        read_table(on(server, "selec 1"))
    with pytest.raises(ColumnMissingError, match="has no column 'user_id'"):
        prepare_dataset(on(server, "select 1 as item_id"), Schema())
    with pytest.raises(SourceUnavailableError, match="no connection"):
        read_table(
            Query(SELECT, server.address.replace(str(server.port), str(servers.free_port())))
        )
    monkeypatch.setenv("SHOP_PASSWORD", "another secret")
    with pytest.raises(SourceUnavailableError, match="no connection") as caught:
        read_table(on(server))
    assert "another secret" not in str(caught.value)
    monkeypatch.delenv("SHOP_PASSWORD")
    with pytest.raises(ConfigError, match="variable SHOP_PASSWORD is not set"):
        read_table(on(server))


ENDLESS = {
    "sqlite": "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n",
    "postgresql": "select pg_sleep(600)",
    "mysql": "select sleep(600)",
}


# 40 MB: more than what the network holds between the two, which is up to 10 MB with its buffers at their largest
WIDE = "select repeat(a.buyer, 5000) as user_id, a.item as item_id from events a, events b"


def gives_up(query: Query) -> None:
    slow = msgspec.structs.replace(query, timeout=0.3)
    with pytest.raises(SourceUnavailableError, match=r"gave no answer for 0\.3 s") as caught:
        read_table(slow)
    assert "timeout" in caught.value.fix


def test_a_query_that_never_answers_is_given_up(shop):
    gives_up(sqlite(shop, ENDLESS["sqlite"]))
    assert msgspec.structs.replace(sqlite(shop), timeout=9.0).relative_to(Path("/")).timeout == 9.0


def test_servers_that_never_answer_are_given_up(server):
    gives_up(on(server, ENDLESS[server.address.partition(":")[0]]))
    assert read_table(on(server)).height == len(EVENTS)


def test_a_server_that_stops_in_the_middle_is_given_up(server, monkeypatch):
    """The rows after the first ones do not come: the server has no processor any more."""
    monkeypatch.setattr(queries, "_BATCH", 25)
    write, processes = queries.Batches.write, []

    def write_and_stop(batches, frame):
        write(batches, frame)
        if not processes:
            pid = server.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            processes.extend([pid, *map(int, children)])
            for process in processes:
                os.kill(process, signal.SIGSTOP)

    monkeypatch.setattr(queries.Batches, "write", write_and_stop)
    try:
        gives_up(on(server, WIDE))
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
    assert read_table(on(server)).height == len(EVENTS)


def test_the_password_is_nowhere(server, tmp_path, capsys):
    path = tmp_path / "my.toml"
    more = 'password_env = "SHOP_PASSWORD"'
    text = DATA.format(database=server.address, query=ORDERED, more=more)
    path.write_text(text + 'timestamp_format = "seconds"\n')
    main(["prepare", "--config", str(path), "--run", "run"])
    path.write_text(text.replace("moment as", "nope as"))
    with pytest.raises(SystemExit):
        main(["prepare", "--config", str(path), "--run", "run"])
    shown = capsys.readouterr()
    files = [file for file in Path("run").rglob("*") if file.is_file()]
    assert any("SHOP_PASSWORD" in file.read_bytes().decode("latin-1") for file in files)
    for part in (server.password, "gehe%25im", server.password.split()[0]):
        assert part not in shown.out + shown.err
        assert not [file for file in files if part.encode() in file.read_bytes()]


@pytest.mark.postgresql
def test_values_of_postgresql(filled_postgresql, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", filled_postgresql.password)
    uuid = "0a1b2c3d-0000-4000-8000-000000000001"
    row = read_table(
        on(
            filled_postgresql,
            f"select '{uuid}'::uuid a, 1.50::numeric b, '2026-01-02 03:04+01'::timestamptz c, "
            "'{\"x\": 1}'::jsonb d, array['p', 'q'] e, '10.0.0.1'::inet f, true g, 'x'::bytea h",
        )
    ).row(0, named=True)
    assert row["a"] == uuid
    assert row["b"] == "1.50"
    assert row["c"].isoformat() == "2026-01-02T02:04:00+00:00"
    assert row["d"] == '{"x": 1}'
    assert row["e"] == ["p", "q"]
    assert (row["f"], row["g"], row["h"]) == ("10.0.0.1", True, "x")
    with pytest.raises(ColumnTypeError, match="user_id"):
        query = "select '1 day'::interval user_id, 'i' item_id from events"
        prepare_dataset(on(filled_postgresql, query), Schema())
    with pytest.raises(SourceUnavailableError, match="division by zero"):
        read_table(on(filled_postgresql, "select 1 / (moment - 5) from events"))


@pytest.mark.parametrize("package", ["psycopg", "pymysql"])
def test_without_the_driver(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    scheme = {"psycopg": "postgresql", "pymysql": "mysql"}[package]
    with pytest.raises(MissingExtraError, match=package) as caught:
        read_table(Query(SELECT, f"{scheme}://shop@127.0.0.1/shop"))
    assert caught.value.fix == "pip install 'distilrec[sql]'"
