"""What a service does when writes fail, other processes change things, or a model is being tried: store and memory agree."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing

import httpx
import pytest
import redis

from tests.servers import Server, until

pytestmark = pytest.mark.server


@pytest.fixture
def servers():
    """Started services, killed at the end where a test has not stopped them."""
    started: list[Server] = []
    yield started
    for server in started:
        server.client.close()
        if server.process.poll() is None:
            server.kill()


def serve(servers: list[Server], *arguments: object, **options) -> Server:
    servers.append(Server(*arguments, **options))
    return servers[-1]


def version(server: Server) -> str:
    return server.client.get("/v1/model").json()["model_version"]


def listed(server: Server) -> list[str]:
    return server.client.get("/v1/users?limit=500").json()["users"]


# Erasure


@pytest.mark.parametrize("shared", [False, True])
def test_an_erased_user_is_not_listed_by_a_later_bundle(
    two_bundles, tmp_path, servers, redis_server, shared
):
    store = redis_server.url if shared else f"sqlite:///{tmp_path / 'store.db'}"
    server = serve(servers, two_bundles / "one", store)
    assert "u1" in listed(server)
    answer = server.client.delete("/v1/users/u1").json()
    assert (answer["bundle"], answer["store"]) == ("clean", "clean")
    assert "u1" not in listed(server)
    server.post("/v1/model/load", bundle="two", shadow_requests=0)  # still holds the user
    assert "u1" not in listed(server) and len(listed(server)) == 59
    assert server.client.get("/v1/users/u1").status_code == 404
    assert server.stop() == 0
    server = serve(servers, two_bundles / "two", store)
    assert "u1" not in listed(server) and len(listed(server)) == 59
    assert server.client.get("/v1/users/u1").status_code == 404
    assert not server.post("/v1/recommend", user_id="u1")["known_user"]
    assert server.stop() == 0


def test_other_processes_do_not_list_an_erased_user(two_bundles, redis_server, servers):
    one, two = (serve(servers, two_bundles / name, redis_server.url) for name in ("one", "two"))
    two.items("u1")
    two.event("newcomer", "i1")
    two.items("newcomer")
    assert {"u1", "newcomer"} <= set(listed(two))
    for user in ("u1", "newcomer"):
        assert one.client.delete(f"/v1/users/{user}").status_code == 200
    assert {"u1", "newcomer"}.isdisjoint(listed(two))
    one.event("u1", "i1")  # comes back
    assert two.post("/v1/recommend", user_id="u1")["known_user"]
    assert one.stop() == two.stop() == 0


LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(sys.argv[2])
db.execute("SELECT count(*) FROM events").fetchone()
print("held", flush=True)
sys.stdin.readline()
"""


class Held:
    """Another process that holds a lock on a database."""

    def __init__(self, path, statement: str) -> None:
        self.process = subprocess.Popen(
            [shutil.which("python") or "python", "-c", LOCK, str(path), statement],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == "held\n"

    def release(self) -> None:
        self.process.communicate("\n", timeout=60)


def test_an_erasure_beside_a_reader_is_finished_in_the_background(bundle, tmp_path, servers):
    path = tmp_path / "store.db"
    server = serve(servers, bundle, f"sqlite:///{path}")
    for number in range(20):
        server.event("Zaphod-Beeblebrox-7", f"i{number}")
    reader = Held(path, "BEGIN")
    slow: list[float] = []
    done = threading.Event()

    def knock() -> None:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            while not done.is_set():
                started = time.perf_counter()
                client.get("/healthz")
                slow.append(time.perf_counter() - started)

    knocking = threading.Thread(target=knock)
    knocking.start()
    answer = server.client.delete("/v1/users/Zaphod-Beeblebrox-7").json()
    done.set()
    knocking.join()
    assert answer["events_removed"] == 20 and answer["store"].startswith(
        "pending: another program reads"
    )
    assert max(slow) < 0.5  # seconds; it stood for 4.7
    assert server.client.get("/v1/users/Zaphod-Beeblebrox-7").status_code == 404

    def found() -> bool:
        return any(b"Zaphod" in file.read_bytes() for file in tmp_path.glob("store.db*"))

    assert found()
    reader.release()
    until(lambda: not found(), "the user has left the files")
    assert server.stop() == 0


def test_a_write_that_a_busy_database_refuses_changes_nothing(bundle, tmp_path, servers):
    """Erasure, events, features, items: after a 503 the service answers what the store says."""
    path = tmp_path / "store.db"
    server = serve(servers, bundle, f"sqlite:///{path}")
    server.event("u1", "i3")
    before = server.items("u1", k=50)
    writer = Held(path, "BEGIN IMMEDIATE")
    for method, target, body in (
        ("DELETE", "/v1/users/u1", None),
        ("POST", "/v1/events", {"events": [{"user_id": "u1", "item_id": "i5"}]}),
        ("PUT", "/v1/users/u1", {"features": {"age": 70}}),
        ("PUT", "/v1/items/fresh", {"features": {"price": 2.0}}),
    ):
        response = server.client.request(method, target, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "store_unavailable",
        )
        assert server.items("u1", k=50) == before
    assert "u1" in listed(server) and server.client.get("/v1/items/fresh").status_code == 404
    writer.release()
    assert server.client.delete("/v1/users/u1").json()["events_removed"] == 1
    assert "u1" not in listed(server)
    assert server.stop() == 0


def test_erasing_while_redis_rewrites_its_file(bundle, redis_server, servers):
    server = serve(servers, bundle, redis_server.url)
    for number in range(20):
        server.post(
            "/v1/events", events=[{"user_id": f"n{number}-{n}", "item_id": "i1"} for n in range(5)]
        )
    server.event("Zaphod-Beeblebrox-7", "i1")
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.config_set("rdb-key-save-delay", 20_000)  # microseconds: about 300 keys
        client.bgrewriteaof()
        answer = server.client.delete("/v1/users/Zaphod-Beeblebrox-7").json()
        assert answer["events_removed"] == 1 and answer["store"].startswith("pending: ")
        client.config_set("rdb-key-save-delay", 0)

    def found() -> bool:
        files = [file for file in redis_server.folder.rglob("*") if file.is_file()]
        try:
            return any(b"Zaphod" in file.read_bytes() for file in files)
        except FileNotFoundError:  # replaced just now
            return True

    until(lambda: not found(), "the user has left the files")
    assert server.stop() == 0


# The store


def test_a_full_redis_refuses_events_only(bundle, redis_server, servers):
    server = serve(servers, bundle, redis_server.url)
    server.event("u1", "i3")
    answer = server.items("u1")
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.config_set("maxmemory", 100_000)
        response = server.client.post(
            "/v1/events", json={"events": [{"user_id": "u1", "item_id": "i5"}]}
        )
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "store_unavailable",
        )
        assert "is full (maxmemory)" in server.log.read_text()
        assert server.items("u1") == answer
        assert server.client.get("/v1/users/u1").json()["event_count"] == 1
        assert server.client.delete("/v1/users/u1").json()["events_removed"] == 1
        assert server.client.get("/v1/users/u1").status_code == 404
        again = serve(servers, bundle, redis_server.url)  # becomes ready while the server is full
        assert again.stop() == 0
    assert server.stop() == 0


def test_a_redis_that_lost_events_is_followed(bundle, redis_server, servers, tmp_path):
    """Two services ran before; the backup has neither the newest events nor the newest item."""
    one, two = (serve(servers, bundle, redis_server.url) for _ in range(2))
    one.event("u1", "i1")
    redis_server.kill()
    shutil.copytree(redis_server.folder, tmp_path / "backup")
    redis_server.start()
    for number in range(2, 6):
        one.event("u1", f"i{number}")
    one.client.put("/v1/items/lost", json={"features": {"price": 2.0}})
    redis_server.kill()
    shutil.rmtree(redis_server.folder)
    shutil.copytree(tmp_path / "backup", redis_server.folder)
    redis_server.start()
    one.client.put("/v1/items/kept", json={"features": {"price": 2.0}})
    for number in range(10, 13):
        one.event("u1", f"i{number}")
        for server in (one, two):
            until(
                lambda server=server: server.client.get("/v1/items/kept").status_code == 200,
                "the item is followed",
            )
            items = set(server.items("u1", k=99))
            assert f"i{number}" not in items
    fresh = serve(servers, bundle, redis_server.url)
    expected = [item for item in fresh.items("u1", k=99) if item != "lost"]
    for server in (one, two):
        assert [item for item in server.items("u1", k=99) if item != "lost"] == expected
        assert server.client.get("/v1/users/u1").json()["event_count"] == 4
    for server in (one, two, fresh):
        assert server.stop() == 0


def test_a_backup_restored_into_the_open_database(bundle, tmp_path, servers):
    path = tmp_path / "store.db"
    server = serve(servers, bundle, f"sqlite:///{path}")
    server.event("u1", "i1")
    with (
        closing(sqlite3.connect(path)) as live,
        closing(sqlite3.connect(tmp_path / "backup")) as backup,
    ):
        live.backup(backup)
        for number in range(2, 6):
            server.event("u1", f"i{number}")
        backup.backup(live)
    assert server.event("u1", "i7")["accepted"] == 1
    assert server.client.get("/v1/users/u1").json()["event_count"] == 2
    after = server.items("u1", k=99)
    assert "i7" not in after
    assert server.stop() == 0
    again = serve(servers, bundle, f"sqlite:///{path}")
    assert again.items("u1", k=99) == after
    assert again.stop() == 0


def test_files_deleted_under_the_service(bundle, tmp_path, servers):
    path = tmp_path / "store.db"
    server = serve(servers, bundle, f"sqlite:///{path}")
    server.event("u1", "i1")
    for file in tmp_path.glob("store.db*"):
        file.unlink()
    response = server.client.post(
        "/v1/events", json={"events": [{"user_id": "u1", "item_id": "i2"}]}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
    assert "has been deleted or replaced while it is in use" in server.log.read_text()
    until(lambda: server.client.get("/readyz").status_code == 503, "the service is not ready")
    assert server.stop() == 0


# Models


def test_a_model_that_cannot_be_kept_is_not_switched_to(two_bundles, redis_server, servers):
    one, two = (serve(servers, two_bundles / "one", redis_server.url) for _ in range(2))
    first = version(one)
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.config_set("maxmemory", 100_000)
        response = one.client.post("/v1/model/load", json={"bundle": "two", "shadow_requests": 0})
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "store_unavailable",
        )
        assert version(one) == version(two) == first
        client.config_set("maxmemory", 0)
        second = one.post("/v1/model/load", bundle="two", shadow_requests=0)["model_version"]
        until(lambda: version(two) == second, "the other one has followed")
        client.config_set("maxmemory", 100_000)
        response = two.client.post("/v1/model/rollback", json={})
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "store_unavailable",
        )
        assert version(one) == version(two) == second
    assert one.stop() == two.stop() == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_rollback_after_a_restart(two_bundles, tmp_path, servers, redis_server, shared):
    store = redis_server.url if shared else f"sqlite:///{tmp_path / 'store.db'}"
    server = serve(servers, two_bundles / "one", store)
    first = version(server)
    second = server.post("/v1/model/load", bundle="two", shadow_requests=0)["model_version"]
    assert server.stop() == 0
    server = serve(servers, two_bundles / "one", store)
    about = server.client.get("/v1/model").json()
    assert (about["model_version"], about["previous_version"]) == (second, first)
    assert server.post("/v1/model/rollback")["model_version"] == first
    about = server.client.get("/v1/model").json()
    assert (about["model_version"], about["previous_version"]) == (first, second)
    assert server.stop() == 0
    server = serve(servers, two_bundles / "one", store)
    assert version(server) == first
    assert server.post("/v1/model/rollback")["model_version"] == second
    assert server.stop() == 0


class Trial:
    """A load whose shadow would take an hour, in a thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        before = server.log.read_text().count("trying a model")
        self.thread = threading.Thread(target=self._load)
        self.thread.start()
        until(
            lambda: server.log.read_text().count("trying a model") > before,
            "the candidate is being tried",
        )

    def _load(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=300, trust_env=False) as client:
            body = {"bundle": "two", "shadow_requests": 1_000, "shadow_seconds": 3_600}
            self.response = client.post("/v1/model/load", json=body)

    def result(self) -> tuple[int, str]:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.response.status_code, self.response.json()["error"]["code"]


def test_a_rollback_ends_a_trial(two_bundles, tmp_path, servers):
    server = serve(servers, two_bundles / "one", f"sqlite:///{tmp_path / 'store.db'}")
    first = version(server)
    trial = Trial(server)
    answer = server.post("/v1/model/rollback")  # ends the trial; there is no model to go back to
    assert (
        not answer["switched"]
        and answer["model_version"] == first
        and "there is no earlier model" in answer["reason"]
    )
    assert trial.result() == (409, "swap_conflict")
    second = server.post("/v1/model/load", bundle="two", shadow_requests=0)["model_version"]
    trial = Trial(server)
    assert server.post("/v1/model/rollback")["model_version"] == first
    assert trial.result() == (409, "swap_conflict")
    assert server.client.get("/v1/model").json()["previous_version"] == second
    assert server.stop() == 0


def test_sigterm_ends_a_trial(two_bundles, tmp_path, servers):
    server = serve(servers, two_bundles / "one", f"sqlite:///{tmp_path / 'store.db'}")
    trial = Trial(server)
    server.process.send_signal(signal.SIGTERM)
    assert trial.result() == (503, "not_ready")
    assert server.process.wait(60) == 0


def test_a_bundle_that_another_process_switched_to_and_cannot_be_read(
    two_bundles, redis_server, servers
):
    one, two = (serve(servers, two_bundles / "one", redis_server.url) for _ in range(2))
    first = version(one)
    manifest = two_bundles / "two" / "manifest.json"
    text = manifest.read_bytes()
    os.kill(two.process.pid, signal.SIGSTOP)  # until the bundle is damaged
    second = one.post("/v1/model/load", bundle="two", shadow_requests=0)["model_version"]
    manifest.unlink()
    manifest.mkdir()  # not even our own kind of error
    os.kill(two.process.pid, signal.SIGCONT)
    until(
        lambda: two.client.get("/readyz").status_code == 503, "the process that is behind says so"
    )
    assert "cannot be loaded" in two.client.get("/readyz").json()["error"]["message"]
    assert '"event":"upkeep fails"' in two.log.read_text()
    assert version(two) == first and two.items("u1")  # but answers
    assert one.client.get("/readyz").status_code == 200
    one.client.put("/v1/items/fresh", json={"features": {"price": 2.0}})
    until(lambda: two.client.get("/v1/items/fresh").status_code == 200, "items are still followed")
    manifest.rmdir()
    manifest.write_bytes(text)
    until(lambda: two.client.get("/readyz").status_code == 200, "it has caught up")
    assert version(two) == second
    assert one.stop() == two.stop() == 0


def test_one_unreadable_event_is_not_the_fault_of_others(bundle, redis_server, servers):
    server = serve(servers, bundle, redis_server.url)
    server.event("broken", "i1")
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.rpush("distilrec:events:broken", b"\xc1")
    statuses: dict[str, set[int]] = {"broken": set(), "u1": set()}

    def ask(user: str) -> None:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            for _ in range(100):
                statuses[user].add(client.post("/v1/recommend", json={"user_id": user}).status_code)

    threads = [
        threading.Thread(target=ask, args=(user,)) for user in ("broken", "u1", "broken", "u1")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {"broken": {503}, "u1": {200}}
    assert server.stop() == 0
