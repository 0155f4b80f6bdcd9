"""Both stores keep the contract; and what only one of them can suffer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from distilrec.errors import (
    ConfigError,
    MissingExtraError,
    StoreCorruptedError,
    StoreUnavailableError,
    StoreVersionError,
)
from distilrec.stores import sqlite
from distilrec.stores.opening import open_store
from distilrec.stores.records import ItemRecord, Since
from distilrec.stores.redis import RedisStore
from distilrec.stores.sqlite import MIGRATIONS, SqliteStore
from distilrec.testing.stores import StoreContract, event
from tests.servers import Redis, until


class TestSqlite(StoreContract):
    @pytest.fixture
    def opener(self, tmp_path):
        return lambda: open_store(f"sqlite:///{tmp_path / 'folder' / 'store.db'}")

    def damage_item(self, store, item_id):
        store._writer.execute(
            "UPDATE items SET record = ? WHERE item_id = ?", (b'{"item_id": 7', item_id)
        )


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory):
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


class TestRedis(StoreContract):
    @pytest.fixture
    def opener(self, shared_redis, request):
        return lambda: open_store(shared_redis.url, prefix=f"{request.node.name}:")

    def damage_item(self, store, item_id):
        store._client.hset(store._prefix + "items", item_id, b'{"item_id": 7')

    def test_a_place_that_is_none(self, store):
        with pytest.raises(ValueError, match="invalid literal"):
            store.users("u1")


@pytest.mark.parametrize("address", ["", "sqlite://", "sqlite:///", "mysql://x", "store.db"])
def test_wrong_addresses(address):
    with pytest.raises(ConfigError, match="is not the address of a store"):
        open_store(address)


def test_one_process_at_a_time(tmp_path):
    first = SqliteStore(tmp_path / "store.db")
    with pytest.raises(StoreUnavailableError, match="in use by another process"):
        SqliteStore(tmp_path / "store.db")
    first.close()
    SqliteStore(tmp_path / "store.db").close()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_process_at_a_time_whatever_the_file_is_called(tmp_path, link):
    (tmp_path / "other").mkdir()
    first = SqliteStore(tmp_path / "store.db")
    link(tmp_path / "store.db", tmp_path / "other" / "alias.db")
    code = "import sys; from distilrec.stores.sqlite import SqliteStore; SqliteStore(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "other" / "alias.db")]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode and "in use by another process" in second.stderr
    assert all(first.append([event()]))
    assert ("hard links" in " ".join(first.check())) == (link is os.link)
    first.close()
    if link is os.symlink:
        again = SqliteStore(tmp_path / "other" / "alias.db")
        assert len(again.read([Since("u")])[0].events) == 1
        again.close()


def _delete(path):
    path.unlink()


def _delete_log(path):
    path.with_name(path.name + "-wal").unlink()


def _replace_by_backup(path):
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    backup.replace(path)


@pytest.mark.parametrize("harm", [_delete, _delete_log, _replace_by_backup])
def test_nothing_is_acknowledged_once_the_files_are_gone(tmp_path, harm):
    store = SqliteStore(tmp_path / "store.db")
    store.append([event(number=1)])
    harm(tmp_path / "store.db")
    for use in (
        lambda: store.append([event(number=2)]),
        lambda: store.read([Since("u")]),
        lambda: store.erase("u"),
        lambda: store.set_setting("x", "1"),
        store.check,
    ):
        with pytest.raises(
            StoreUnavailableError, match="has been deleted or replaced while it is in use"
        ):
            use()
    store.close()


def test_a_backup_that_is_restored_into_an_open_database_is_noticed(tmp_path):
    """The program `sqlite3` can do that (.restore): positions begin again where the backup was made."""
    store = SqliteStore(tmp_path / "store.db")
    store.append([event(number=1)])
    with (
        closing(sqlite3.connect(tmp_path / "store.db")) as live,
        closing(sqlite3.connect(tmp_path / "copy")) as backup,
    ):
        live.backup(backup)
        store.append([event(number=2)])
        before = store.generation
        assert store.erasures() == 0 and store.generation == before
        backup.backup(live)
    store.erasures()
    assert store.generation != before
    again = store.generation
    store.append([event(number=3)])
    assert [e.event_id for e in store.read([Since("u")])[0].events] == ["e1", "e3"]
    assert store.clean() == "" and store.erasures() == 0 and store.generation == again
    store.close()


def test_erasing_beside_another_reader_is_finished_later(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    secret = "Zaphod-Beeblebrox-7"
    store.append([event(secret, number=n) for n in range(50)] + [event("neighbour")])

    def found() -> bool:
        return any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())

    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM events").fetchone()
        started = time.monotonic()
        assert store.erase(secret) == 50  # erased for everyone who asks the store
        assert "another program reads the database" in store.clean()
        assert time.monotonic() - started < 3  # and neither has waited for the other program
        assert not store.read([Since(secret)])[0].events
        assert found()
        other.execute("COMMIT")
    assert store.clean() == ""
    assert not found()
    store.close()


def test_the_file_belongs_to_its_owner_only(tmp_path):
    SqliteStore(tmp_path / "store.db").close()
    assert (tmp_path / "store.db").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="cannot be opened"):
        SqliteStore(tmp_path / "file" / "store.db")


def test_migrations_keep_what_is_there(tmp_path):
    path = tmp_path / "store.db"
    store = SqliteStore(path, MIGRATIONS[:1])  # as version 0.1.0 made it
    store.append([event(number=1)])
    store.close()
    store = SqliteStore(path)
    assert store.merge("u", "v") == 1 and store.merge("v", "u") == 1
    store.close()
    later = (*MIGRATIONS, "ALTER TABLE users ADD COLUMN note TEXT; CREATE TABLE extra (x);")
    store = SqliteStore(path, later)
    assert [e.item_id for e in store.read([Since("u")])[0].events] == ["i1"]
    store.close()
    newest = len(MIGRATIONS)
    with pytest.raises(
        StoreVersionError,
        match=f"has schema version {newest + 1}; this distilrec knows up to {newest}",
    ):
        SqliteStore(path)


def test_a_failed_migration_leaves_the_old_version(tmp_path):
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    with pytest.raises(StoreUnavailableError):
        SqliteStore(path, (*MIGRATIONS, "CREATE TABLE fine (x); CREATE TABLE events (x);"))
    store = SqliteStore(path)
    assert store.append([event()])[0] > 0
    assert store._writer.execute(
        "SELECT count(*) FROM sqlite_master WHERE name = 'fine'"
    ).fetchone() == (0,)
    store.close()


def test_no_database_at_all(tmp_path):
    path = tmp_path / "store.db"
    path.write_bytes(b"this is a text file, and a long one " * 100)
    with pytest.raises(StoreCorruptedError, match="restore it from a backup"):
        SqliteStore(path)


def test_a_damaged_database(tmp_path):
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.append([event(f"user-{n}", number=n) for n in range(3_000)])
    store.verify()
    store.close()
    data = bytearray(path.read_bytes())
    for place in range(8_192, len(data), 4_096):
        data[place : place + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(StoreCorruptedError, match="is damaged"):
        store = SqliteStore(path)
        try:
            store.verify()
        finally:
            store.close()


def test_a_full_disk_stores_nothing_and_recovers(tmp_path):
    """SQLite is told that its file may not grow, which is what it sees on a full disk."""
    store = SqliteStore(tmp_path / "store.db")
    store.append([event(number=1)])
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailableError, match="full"):
        store.append([event(number=n) for n in range(2, 5_000)])
    assert len(store.read([Since("u")])[0].events) == 1  # all or none
    store._writer.execute("PRAGMA max_page_count = 1000000")
    assert all(store.append([event(number=n) for n in range(2, 5_000)]))
    store.close()


def test_little_space_is_a_warning(tmp_path, monkeypatch):
    store = SqliteStore(tmp_path / "store.db")
    assert store.check() == []
    monkeypatch.setattr(sqlite, "_LOW_SPACE", 2**60)
    assert "MiB are free" in store.check()[0]
    store.close()


def test_no_byte_of_an_erased_user_is_left_in_the_files(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    secret, item = "Zaphod-Beeblebrox-7", "a-very-telling-item"
    for n in range(200):
        store.append(
            [
                event(f"neighbour-{n}", number=n),
                event(secret, item, n),
                event(f"neighbour-{n}", number=n + 500),
            ]
        )
    store.set_features(secret, {"address": "Betelgeuse-5"})

    def found() -> set[str]:
        texts = (secret, item, "Betelgeuse-5")
        return {t for t in texts for file in tmp_path.iterdir() if t.encode() in file.read_bytes()}

    assert found() == {secret, item, "Betelgeuse-5"}
    assert store.erase(secret) == 200
    assert found() == set()
    assert len(store.read([Since("neighbour-3")])[0].events) == 2
    store.verify()
    store.close()
    assert found() == set()


def test_no_key_of_an_erased_user_is_left_in_redis(shared_redis):
    import redis

    store = RedisStore(shared_redis.url, "erasure:")
    secret = "Zaphod-Beeblebrox-7"
    store.append([event(secret, number=n) for n in range(50)] + [event("neighbour")])
    store.set_features(secret, {"address": "Betelgeuse-5"})
    client = redis.Redis.from_url(shared_redis.url)
    assert any(secret.encode() in key for key in client.scan_iter("erasure:*"))
    assert store.erase(secret) == 50
    assert not any(secret.encode() in key for key in client.scan_iter())
    until(
        lambda: store.clean() == "", "the file has been rewritten"
    )  # the rewrite of the append-only file takes a moment
    on_disk = b"".join(
        file.read_bytes() for file in shared_redis.folder.rglob("*") if file.is_file()
    )
    assert b"neighbour" in on_disk
    assert secret.encode() not in on_disk and b"Betelgeuse-5" not in on_disk
    client.close()
    store.close()


@pytest.fixture
def client(redis_server):
    import redis

    with closing(redis.Redis.from_url(redis_server.url)) as client:
        yield client


def test_erasing_while_the_append_only_file_is_rewritten(redis_server, client):
    """The rewrite under way began before the erasure: the user is in its result, and another one has to follow."""
    store = RedisStore(redis_server.url)
    secret = "Zaphod-Beeblebrox-7"
    for n in range(30):
        store.append([event(secret, number=n), event(f"neighbour-{n}", number=n)])

    def found() -> bool:
        files = [file for file in redis_server.folder.rglob("*") if file.is_file()]
        return any(secret.encode() in file.read_bytes() for file in files)

    client.config_set("rdb-key-save-delay", 20_000)  # microseconds: 93 keys
    client.bgrewriteaof()
    assert client.info("persistence")["aof_rewrite_in_progress"]
    assert store.erase(secret) == 30
    assert "rewriting its append-only file" in store.clean()
    client.config_set("rdb-key-save-delay", 0)
    another = RedisStore(
        redis_server.url
    )  # what is left to be done is known after a restart, and to other processes
    assert "rewriting its append-only file" in another.clean()
    store.close()
    until(lambda: another.clean() == "", "the file has been rewritten")
    assert not found()
    assert len(another.read([Since("neighbour-1")])[0].events) == 1
    another.close()


def test_a_full_redis_can_be_read_and_erased(redis_server, client):
    store = RedisStore(redis_server.url)
    store.append([event(number=n) for n in range(20)] + [event("other")])
    store.put_item(ItemRecord("a"))
    known = store.read([Since("u")])[0]
    client.config_set("maxmemory", 100_000)  # less than what is in use already
    for write in (
        lambda: store.append([event(number=99)]),
        lambda: store.set_features("u", {}),
        lambda: store.put_item(ItemRecord("b")),
        lambda: store.set_setting("x", "1"),
    ):
        with pytest.raises(StoreUnavailableError, match="full"):
            write()
    store.close()
    store = RedisStore(redis_server.url)  # a worker that starts now
    assert len(store.read([Since("u")])[0].events) == 20
    assert store.read([Since("u", known.epoch, known.position)])[0].events == []
    assert store.items()[0] == [ItemRecord("a", available=True)]
    assert store.setting("x") is None and store.erased_among(["u"]) == []
    assert store.erase("u") == 20
    assert store.erased_among(["u"]) == ["u"] and not store.read([Since("u")])[0].events
    until(lambda: store.clean() == "", "the file has been rewritten")
    client.config_set("maxmemory", 0)
    assert all(store.append([event(number=99)]))
    store.close()


def test_a_redis_that_lost_its_newest_events_is_read_from_the_start(redis_server):
    """A promoted replica or a restored backup: positions go back, and the same positions hold other events."""
    store = RedisStore(redis_server.url)
    store.append([event(number=n) for n in range(3)])
    redis_server.kill()
    shutil.copytree(redis_server.folder, redis_server.folder.with_name("backup"))
    redis_server.start()
    store.append([event(number=n) for n in range(3, 6)])
    store.put_item(ItemRecord("a"))
    generation = store.generation
    known = store.read([Since("u")])[0]
    assert known.position == 6
    redis_server.kill()
    shutil.rmtree(redis_server.folder)
    shutil.copytree(redis_server.folder.with_name("backup"), redis_server.folder)
    redis_server.start()
    for number in range(10, 15):  # as long as before, and longer, in the end
        store.append([event(number=number)])
        (now,) = store.read([Since("u", known.epoch, known.position)])
        assert now.restart and now.epoch != known.epoch
        assert [e.event_id for e in now.events] == [
            "e0",
            "e1",
            "e2",
            *(f"e{n}" for n in range(10, number + 1)),
        ]
    assert store.generation != generation
    (nothing,) = store.read([Since("u", now.epoch, now.position)])
    assert not nothing.restart and not nothing.events
    store.close()


def test_a_log_that_became_shorter_on_the_same_server(shared_redis):
    store = RedisStore(shared_redis.url, "shorter:")
    store.append([event(number=n) for n in range(4)])
    known = store.read([Since("u")])[0]
    store._client.rpop("shorter:events:u")
    (now,) = store.read([Since("u", known.epoch, known.position)])
    assert (
        now.restart
        and now.epoch != known.epoch
        and [e.event_id for e in now.events] == ["e0", "e1", "e2"]
    )
    store.close()


@pytest.mark.redis
def test_redis_down_and_back(tmp_path):
    server = Redis(tmp_path)
    store = RedisStore(server.url)
    assert all(store.append([event(number=1)]))
    server.kill()
    with pytest.raises(StoreUnavailableError, match="check that the server runs"):
        store.append([event(number=2)])
    with pytest.raises(StoreUnavailableError):
        store.read([Since("u")])
    server.start()
    assert all(store.append([event(number=2)]))
    assert [e.event_id for e in store.read([Since("u")])[0].events] == [
        "e1",
        "e2",
    ]  # the first is still there
    assert store.append([event(number=1)]) == [0]
    store.close()
    server.stop()


def test_redis_says_how_durable_it_is(shared_redis):
    import redis

    store = RedisStore(shared_redis.url)
    assert store.check() == []
    client = redis.Redis.from_url(shared_redis.url)
    client.config_set("appendfsync", "everysec")
    assert "can lose a second of events" in store.check()[0]
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert "evicts keys" in store.check()[1]
    client.config_set("appendfsync", "always")
    client.config_set("maxmemory-policy", "noeviction")
    client.close()
    store.close()


def test_redis_of_a_newer_version_or_with_strange_content(shared_redis):
    import redis

    client = redis.Redis.from_url(shared_redis.url)
    client.set("newer:schema", 9)
    with pytest.raises(StoreVersionError, match="has schema version 9"):
        RedisStore(shared_redis.url, "newer:")
    store = RedisStore(shared_redis.url, "strange:")
    store.append([event()])
    client.rpush("strange:events:u", b"\xc1")
    with pytest.raises(StoreCorruptedError, match="holds something that distilrec did not write"):
        store.read([Since("u")])
    client.close()
    store.close()


def test_redis_addresses():
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        RedisStore("redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailableError, match="not valid"):
        RedisStore("redis://127.0.0.1:port/0")


def test_redis_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"package 'redis'"):
        RedisStore("redis://127.0.0.1:1/0")


def test_sqlite_errors_do_not_leak(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    store._writer.close()
    with pytest.raises(StoreUnavailableError) as caught:
        store.append([event()])
    assert not isinstance(caught.value, sqlite3.Error)
    store._writer = store._connect()
    store.close()
