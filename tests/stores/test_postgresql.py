"""PostgreSQL keeps the contract of stores, for several processes and machines, through crashes of all of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial

import pytest

from distilrec.errors import (
    ConfigError,
    MissingExtraError,
    StoreCorruptedError,
    StoreUnavailableError,
    StoreVersionError,
)
from distilrec.stores import postgresql as module
from distilrec.stores.opening import holds_secret, open_store, shown
from distilrec.stores.postgresql import MIGRATIONS, PostgresqlStore
from distilrec.stores.postgresql_lines import escaped, unescaped
from distilrec.stores.records import ItemRecord, Since, StoredEvent
from distilrec.testing.stores import StoreContract, attributed, event, impression, sums_of
from tests.nodes import opening
from tests.servers import PATIENCE, until

pytestmark = pytest.mark.postgresql


@pytest.fixture(autouse=True)
def _password(postgresql, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", postgresql.password)


@pytest.fixture
def schema(request):
    """A schema of the test's own."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:16]


@pytest.fixture
def opened(postgresql, schema):
    """Opens the store of the test, as often as it likes."""
    with opening(partial(PostgresqlStore, postgresql.address, schema)) as open_one:
        yield open_one


class TestPostgresql(StoreContract):
    @pytest.fixture
    def opener(self, postgresql, schema):
        return lambda: open_store(postgresql.address, prefix=f"{schema}:")

    def damage_item(self, store, item_id):
        store._write(
            lambda db: db.execute(
                "UPDATE items SET record = %s WHERE item_id = %s", (b'{"item_id": 7', item_id)
            )
        )


@pytest.mark.slow
def test_two_machines_write_the_same_users_at_once(opened):
    """In any order, with repetitions and merges: each event is there once, and whoever follows the logs misses none."""
    users, rounds = [f"u{n}" for n in range(6)], 40
    stores = [opened() for _ in range(3)]
    follower, problems = opened(), list[BaseException]()

    def write(number: int) -> None:
        try:
            for n in range(rounds):
                names = users if (n + number) % 2 else users[::-1]
                batch = [event(user, number=n) for user in names]  # of all three writers
                batch += [event(user, number=n, event_id=f"{number}-{n}") for user in names]
                batch += [impression(user, "i", f"e{n}", 1e9) for user in names]
                batch += [attributed("click", "i", f"e{n}", n, 1, user="clicker")]
                stores[number].append(batch)
                if n % 10 == 0:
                    stores[number].merge(f"visitor-{number}", users[n % 6])
                    stores[number].put_item(ItemRecord(f"i{number}-{n}"))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    seen = {user: list[str]() for user in users}
    places, items, change = {user: Since(user) for user in users}, list[str](), 0

    def follow() -> None:
        nonlocal change
        for user, record in zip(users, follower.read(list(places.values())), strict=True):
            if record.restart:
                seen[user].clear()
            seen[user] += [e.event_id for e in record.events]
            places[user] = Since(user, record.epoch, record.position)
        records, change = follower.items(change)
        items.extend(record.item_id for record in records)

    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        follow()
    for thread in threads:
        thread.join(PATIENCE)
    follow()
    assert not problems
    wanted = {f"e{n}" for n in range(rounds)} | {
        f"{w}-{n}" for w in range(3) for n in range(rounds)
    }
    for user in users:
        assert Counter(seen[user]) == Counter(wanted)
        assert follower.shown(user, 0) == {"i": rounds}
    assert Counter(items) == Counter(f"i{w}-{n}" for w in range(3) for n in range(0, rounds, 10))
    assert (
        sums_of(follower)["p0", 1, "clicks"] == sums_of(follower)["p1", 1, "clicks"] == rounds / 2
    )


WRITER = """
import sys
from itertools import count
from time import time
from distilrec.stores.outcomes import Attribution
from distilrec.stores.postgresql import PostgresqlStore
from distilrec.stores.records import StoredEvent

address, schema, name = sys.argv[1:]
store, now = PostgresqlStore(address, schema), int(time())
for n in count():
    ids = [f"{name}-{n}-{k}" for k in range(4)]
    answer = now.to_bytes(4) + ids[3].encode()
    click = Attribution(answer, "p0", "click", b"i", ids[3].encode(), position=1)
    attributions = None, None, None, click
    store.append(
        [
            StoredEvent(f"u{k}", "i", "view", now, now, ids[k], attributions[k])
            for k in (range(4) if n % 2 else (3, 2, 1, 0))
        ]
    )
    print(*ids, flush=True)
"""


def stored_ids(store: PostgresqlStore) -> Counter[str]:
    records = store.read([Since(f"u{k}") for k in range(4)])
    return Counter(e.event_id for record in records for e in record.events)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [2])
def test_kill_9_of_workers_loses_nothing_and_doubles_nothing(
    postgresql, opened, schema, tmp_path, rounds
):
    """Four workers at a time write the same users, and each is killed in the middle of it."""
    store, acknowledged = opened(), list[str]()
    for round_ in range(rounds):
        outputs = [tmp_path / f"{round_}-{n}" for n in range(4)]
        workers = []
        for output in outputs:
            with output.open("w") as file:
                command = [sys.executable, "-c", WRITER, postgresql.address, schema, output.name]
                workers.append(subprocess.Popen(command, stdout=file))
        for output, worker in zip(outputs, workers, strict=True):
            until(lambda output=output: output.stat().st_size > 300, "events are acknowledged")
            worker.kill()
            worker.wait()
        for output in outputs:  # the last line may be torn
            acknowledged += output.read_text().rpartition("\n")[0].split()
    stored = stored_ids(store)
    assert len(acknowledged) > 20 and set(acknowledged) <= set(stored)
    assert set(stored.values()) == {1}
    # What became of answers is counted with the events
    clicks = sum(name.endswith("-3") for name in stored)
    assert sums_of(store)["p0", 1, "clicks"] == sums_of(store)["p0", 0, "clicked"] == clicks
    assert all(store.append([event("u9")]))  # no lock is left behind


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [3])
def test_a_server_that_crashes_loses_nothing_that_was_acknowledged(postgresql, opened, rounds):
    """Writers send what failed again; they are not started again, and go on by themselves."""
    stores, acknowledged, problems = (
        [opened() for _ in range(2)],
        list[str](),
        list[BaseException](),
    )
    failures, generation = Counter[str](), stores[0].generation
    stop = threading.Event()

    def write(number: int) -> None:
        n = 0
        while not stop.is_set():
            names = [f"{number}-{n}-{k}" for k in range(4)]
            batch = [event(f"u{k}", number=k, event_id=name) for k, name in enumerate(names)]
            try:
                stores[number].append(batch)
            except StoreUnavailableError:
                failures[f"writer {number}"] += 1
                time.sleep(0.01)
                continue
            except BaseException as problem:
                problems.append(problem)
                return
            acknowledged.extend(names)
            n += 1

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        before = len(acknowledged)
        until(lambda before=before: len(acknowledged) > before + 40, "events are acknowledged")
        failed = failures.total()
        postgresql.crash()
        until(lambda failed=failed: failures.total() > failed, "writers notice")
        postgresql.start_again()
    until(lambda: len(acknowledged) > before + 80, "events are acknowledged again")
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not problems
    stored = stored_ids(stores[0])
    assert set(acknowledged) <= set(stored) and set(stored.values()) == {1}
    assert stores[0].generation != generation


def test_a_database_that_lost_its_newest_events_is_read_from_the_start(postgresql, opened):
    """A restored backup, or a standby that was behind: the same positions hold other events."""
    store = opened()
    store.append([event(number=n) for n in range(3)])
    data, copy = postgresql.folder / "data", postgresql.folder / "copy"
    postgresql.crash()
    subprocess.run(["cp", "-a", data, copy], check=True)
    postgresql.start_again()
    store.append([event(number=n) for n in range(3, 6)])
    known, generation = store.read([Since("u")])[0], store.generation
    assert len(known.events) == 6
    postgresql.crash()
    shutil.rmtree(data)
    copy.rename(data)
    postgresql.start_again()
    for number in range(10, 15):  # as long as before, and longer, in the end
        store.append([event(number=number)])
        (now,) = store.read([Since("u", known.epoch, known.position)])
        assert now.restart and now.epoch != known.epoch
        assert [e.event_id for e in now.events] == [
            f"e{n}" for n in (0, 1, 2, *range(10, number + 1))
        ]
    assert store.generation != generation
    (nothing,) = store.read([Since("u", now.epoch, now.position)])
    assert not nothing.restart and not nothing.events


def test_tables_that_were_emptied_behind_its_back_are_noticed(opened):
    store = opened()
    store.append([event(number=n) for n in range(3)])
    known, before = store.read([Since("u")])[0], store.erasures()
    generation = store.generation
    store._write(lambda db: db.execute("TRUNCATE events"))
    assert store.erasures() == before and store.generation != generation
    (now,) = store.read([Since("u", known.epoch, known.position)])
    assert now.restart and not now.events


def test_a_locked_user_is_a_clear_error_and_delays_no_other(opened, monkeypatch):
    monkeypatch.setattr(module, "_MILLISECONDS", 300)
    one, other = opened(), opened()
    one.append([event("u"), event("v")])
    with one._writer as db, db.transaction():
        one._lock(db, ["u"], ())
        with pytest.raises(StoreUnavailableError, match="statement timeout"):
            other.append([event("u", number=1)])
        assert all(other.append([event("v", number=1)]))
    assert all(other.append([event("u", number=1)]))


def test_a_process_that_stops_within_a_transaction_holds_nobody_up(opened, monkeypatch):
    import psycopg

    monkeypatch.setattr(module, "_IDLE_MILLISECONDS", 300)
    one, other = opened(), opened()
    with (
        pytest.raises(psycopg.Error, match="idle-in-transaction"),
        one._writer as db,
        db.transaction(),
    ):
        one._lock(db, ["u"], ())
        assert all(other.append([event("u", number=1)]))  # waits for it
    assert all(one.append([event("u", number=2)]))


def test_a_read_only_server_is_a_clear_error(postgresql, opened, schema):
    import psycopg

    store = opened()
    store.append([event()])
    postgresql.run(f"alter role {postgresql.user} set default_transaction_read_only = on")
    try:
        reading = opened()  # as a standby
        assert len(reading.read([Since("u")])[0].events) == 1
        for write in (
            lambda: reading.append([event(number=2)]),
            lambda: reading.put_item(ItemRecord("a")),
            reading.check,
        ):
            with pytest.raises(StoreUnavailableError, match="read-only transaction"):
                write()
    finally:
        with psycopg.connect(postgresql.address, autocommit=True) as db:
            db.execute("set default_transaction_read_only = off")
            db.execute(f"alter role {postgresql.user} reset default_transaction_read_only".encode())
    assert all(reading.append([event(number=2)]))  # on a new connection


def test_it_says_how_durable_it_is(opened):
    """The server of the tests runs without fsync, for speed."""
    (warning,) = opened().check()
    assert "fsync = off" in warning and "set fsync = on" in warning


def test_a_commit_is_waited_for_where_the_server_would_not(postgresql, opened):
    postgresql.run(f"alter role {postgresql.user} set synchronous_commit = off")
    try:
        with opened()._writer as db:
            assert db.execute("SHOW synchronous_commit").fetchone() == ("on",)
    finally:
        postgresql.run(f"alter role {postgresql.user} reset synchronous_commit")


def test_processes_that_start_together_make_one_schema(opened):
    stores, problems = list[PostgresqlStore](), list[BaseException]()

    def start() -> None:
        try:
            stores.append(opened())
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not problems
    assert len({store._salt for store in stores}) == 1
    assert all(stores[0].append([event()])) and len(stores[5].read([Since("u")])[0].events) == 1


def test_migrations_keep_what_is_there_and_fail_as_a_whole(opened):
    store = opened()
    store.append([event(number=1)])
    broken = (*MIGRATIONS, "CREATE TABLE fine (x int); CREATE TABLE events (x int);")
    with pytest.raises(StoreUnavailableError, match="already exists"):
        opened(migrations=broken)
    later = opened(migrations=(*MIGRATIONS, "CREATE TABLE fine (x int);"))
    assert [e.item_id for e in later.read([Since("u")])[0].events] == ["i1"]
    newest = len(MIGRATIONS)
    with pytest.raises(
        StoreVersionError, match=f"schema version {newest + 1}; this distilrec knows up to {newest}"
    ):
        opened()


def test_strange_or_missing_tables_are_a_clear_error(opened, schema):
    store = opened()
    store.set_features("u", {"age": 1})
    store._write(lambda db: db.execute("UPDATE users SET features = %s", (b"{",)))
    with pytest.raises(StoreCorruptedError, match="holds something that distilrec did not write"):
        store.read([Since("u")])
    store._write(lambda db: db.execute("DROP TABLE marks, shown"))
    with pytest.raises(StoreCorruptedError, match="shown"):
        store.shown("u", 0)


def test_no_row_of_an_erased_user_is_left(opened, schema):
    store, secret = opened(), "Zaphod-Beeblebrox-7"
    store.append(
        [event(secret, "a-very-telling-item", n) for n in range(50)] + [event("neighbour")]
    )
    store.append([impression(secret, "a-very-telling-item", "e", 1e9)])
    store.set_features(secret, {"address": "Betelgeuse-5"})
    store.merge("session", secret)

    def rows() -> str:
        with store._writer as db:
            tables = [name for (name,) in db.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)
            ).fetchall()]  # fmt: skip
            found = [db.execute(f"SELECT t::text FROM {table} AS t").fetchall() for table in tables]
        return str(found)

    telling = b"Betelgeuse-5".hex()
    assert secret in rows() and telling in rows()
    assert store.erase(secret) == 50
    assert secret not in rows() and "a-very-telling-item" not in rows() and telling not in rows()
    until(lambda: store.clean() == "", "the tables have been vacuumed")
    assert opened().clean() == ""


def test_ids_hold_any_characters(opened):
    store = opened()
    odd = [
        "\0",
        "\x1a",
        "\x1a0",
        "\0\x1a1",
        "'; DROP TABLE events; --",
        "%s",
        "{}",
        '"',
        "\\",
        "é\u2028😀",
    ]
    assert all(store.append([StoredEvent(text, text, text, 1.0, 2.0, text) for text in odd]))
    for text, record in zip(odd, store.read([Since(text) for text in odd]), strict=True):
        assert list(record.events) == [StoredEvent(text, text, text, 1.0, 2.0, text)]
        assert unescaped(escaped(text)) == text and "\0" not in escaped(text)
    assert set(store.counts(0, 0)) == {(0, text) for text in odd}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda address: address.replace("shop@", "tops3cret@"), "password authentication failed"),
        (lambda address: address.removesuffix("shop") + "nowhere", '"nowhere" does not exist'),
        (lambda address: address.rpartition(":")[0] + ":1/shop", "onnection refused"),
        (lambda address: address + "?sslmode=require", "server does not support SSL"),
        (lambda address: address + "?tops3cret=1", "is not valid"),
        (lambda address: address.replace("@", ":tops3cret@"), "password authentication failed"),
        (lambda address: address.replace("shop@", "tops3cret%zz@"), "is not valid"),
    ],
)
def test_addresses_that_do_not_work_keep_their_secrets(postgresql, change, words):
    address = change(postgresql.address)
    with pytest.raises(StoreUnavailableError, match=words) as caught:
        open_store(address)
    assert "tops3cret" not in f"{caught.value} {caught.value.fix} {shown(address)}"
    assert ("sslmode" in caught.value.fix) == ("sslmode" in address)
    assert ("PGPASSWORD" in caught.value.fix) == ("authentication" in words)


def test_addresses_and_prefixes(postgresql, tmp_path, monkeypatch):
    assert (
        shown("postgresql://me:secret@a.b:5,[::1]:6/shop?x=y") == "postgresql://a.b:5,[::1]:6/shop"
    )
    assert (
        holds_secret("postgresql://me:secret@h/shop")
        and shown("postgres://me@h/s") == "postgres://h/s"
    )
    for prefix in ("", ":", "pg_x", "x" * 64):
        with pytest.raises(ConfigError, match="does not name a schema"):
            open_store(postgresql.address, prefix)
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / "password").write_text(postgresql.password + "\n")
    open_store(postgresql.address, "file", tmp_path / "password").close()
    postgresql.run("create database old encoding 'LATIN1' locale 'C' template template0")
    with pytest.raises(StoreUnavailableError, match="encoding LATIN1"):
        PostgresqlStore(postgresql.address.removesuffix("shop") + "old", "x", postgresql.password)


def test_a_user_without_rights_is_told_what_to_grant(postgresql):
    postgresql.run("create role guest login password 'guest'")
    address = postgresql.address.replace("shop@", "guest@")
    with pytest.raises(StoreUnavailableError, match="permission denied") as caught:
        PostgresqlStore(address, "guests", "guest")
    assert "GRANT CREATE ON DATABASE" in caught.value.fix
    postgresql.run("create schema guests authorization guest")  # or a schema of its own
    store = PostgresqlStore(address, "guests", "guest")
    assert all(store.append([event()]))
    store.close()


def test_psycopg_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError) as caught:
        open_store("postgresql://h/x")
    assert caught.value.fix == "pip install 'distilrec[postgresql]'"


def test_a_store_opened_before_a_fork_belongs_to_the_parent(opened):
    store = opened()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # only system calls and the store: pytest must not see this process
        try:
            store.close()
            store.append([event()])
        except StoreUnavailableError as problem:
            os.write(writing, problem.message.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"before this process was forked" in os.read(reading, 1_000)
    os.close(reading)
    os.close(writing)
    assert all(store.append([event()]))
