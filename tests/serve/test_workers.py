"""Several workers and their supervisor: nothing that happens to one of them ends the service, and nothing outlives it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import httpx
import pytest
import redis

from tests.servers import Redis, Server, until

pytestmark = pytest.mark.server


@pytest.fixture
def server(bundle, redis_server):
    service = started(bundle, redis_server)
    yield service
    service.client.close()
    if service.process.poll() is None:
        service.kill()


def started(bundle: Path, redis_server: Redis, *options: object) -> Server:
    service = Server(bundle, redis_server.url, "--workers", 2, *options)
    until(lambda: service.log.read_text().count('"event":"ready"') == 2, "both workers are ready")
    return service


def workers(service: Server) -> set[int]:
    """The processes below the supervisor."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = status.read_text().rsplit(") ", 1)
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if int(parent) == service.process.pid and state != "Z":
            found.add(int(name.split()[0]))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def refuses(service: Server) -> bool:
    try:
        httpx.get(f"{service.url}/healthz", timeout=30, trust_env=False)
    except httpx.ConnectError:
        return True
    return False


def test_a_killed_worker_is_replaced(server):
    before = workers(server)
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(workers(server) - {victim}) == 2, "another worker has taken its place")
    until(lambda: server.log.read_text().count('"event":"ready"') == 3, "and is ready")
    assert '"event":"a worker has ended"' in server.log.read_text()
    assert server.event("u1", "i1")["accepted"] == 1
    assert server.stop() == 0


def test_workers_that_cannot_start_are_tried_again(server, redis_server):
    """Redis is away when a worker has to be started again: the other one lives, and the service gets over it."""
    redis_server.kill()
    victim = workers(server).pop()
    os.kill(victim, signal.SIGKILL)
    until(
        lambda: server.log.read_text().count('"event":"a worker cannot start"') >= 2,
        "it was tried twice",
    )
    assert server.process.poll() is None
    assert server.client.get("/healthz").status_code == 200
    redis_server.start()
    until(lambda: server.log.read_text().count('"event":"ready"') == 3, "the worker is back")
    assert server.event("u1", "i1")["accepted"] == 1
    assert server.stop() == 0


def test_one_unreadable_item_stops_no_worker(server, redis_server):
    for item in ("fresh", "broken"):
        server.client.put(f"/v1/items/{item}", json={"title": item, "features": {"price": 2.0}})
    with redis.Redis.from_url(redis_server.url) as client:
        client.hset("distilrec:items", "broken", b'{"item_id": [')
    for process in workers(server):
        os.kill(process, signal.SIGKILL)
    until(lambda: server.log.read_text().count('"event":"ready"') == 4, "both workers are back")
    assert server.client.get("/v1/items/fresh").status_code == 200
    assert server.client.get("/v1/items/broken").status_code == 404
    assert '"event":"an item record cannot be read"' in server.log.read_text()
    server.client.put("/v1/items/broken", json={"title": "mended", "features": {"price": 2.0}})
    assert server.client.get("/v1/items/broken").json()["title"] == "mended"
    assert server.stop() == 0


def test_workers_drain(bundle, redis_server):
    """After SIGTERM: not ready, but still answering, then gone with exit code 0; a second SIGTERM ends the wait."""
    server = started(bundle, redis_server, "--drain-seconds", 60)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.log.read_text().count('"event":"draining"') == 2, "both workers drain")
    assert server.client.get("/readyz").status_code == 503
    assert server.items("u1")
    assert server.stop() == 0
    assert refuses(server)
    assert '"event":"a worker did not stop and is killed"' not in server.log.read_text()
    assert server.log.read_text().count('"event":"stopped"') == 2


def test_a_hangup_changes_nothing(server):
    for process in (server.process.pid, *workers(server)):
        os.kill(process, signal.SIGHUP)
    until(lambda: server.log.read_text().count("SIGHUP is ignored") == 3, "all three have noted it")
    assert server.items("u1")
    assert server.stop() == 0


def test_nothing_outlives_a_killed_supervisor(server):
    left = workers(server)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    until(lambda: not any(map(alive, left)), "the workers have stopped")
    assert server.log.read_text().count('"event":"stopped"') == 2  # in order, not by force
    assert refuses(server)


def test_a_worker_that_does_not_stop_is_an_error_for_the_supervisor_of_the_supervisor(server):
    victim = workers(server).pop()
    os.kill(victim, signal.SIGSTOP)
    try:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: len(workers(server)) == 1, "the other one has stopped")
        os.kill(victim, signal.SIGKILL)
        assert server.process.wait(60) == 1
    finally:
        if alive(victim):
            os.kill(victim, signal.SIGKILL)


def test_an_address_in_use(bundle, redis_server, server):
    second = Server(bundle, redis_server.url, "--workers", 2, port=server.port, wait=False)
    assert second.process.wait(60) == 2
    assert f"{server.port} cannot be used" in second.log.read_text()
    second.client.close()
    assert server.stop() == 0


def test_metrics_name_only_the_model_that_answers(bundle, redis_server, finished_run):
    shutil.copytree(finished_run.bundle_baseline, bundle.parent / "other")
    service = Server(bundle, redis_server.url, "--workers", 2)
    first = service.client.get("/v1/model").json()["model_version"]
    other = service.post("/v1/model/load", bundle="other", shadow_requests=0)["model_version"]

    def models() -> list[str]:
        text = service.client.get("/metrics").text
        return [line for line in text.splitlines() if line.startswith("distilrec_model_info{")]

    until(lambda: len(models()) == 1 and other in models()[0], "only the new model is named")
    service.post("/v1/model/load", bundle="bundle", shadow_requests=0)
    until(lambda: len(models()) == 1 and first in models()[0], "and then only the first one again")
    assert service.stop() == 0
