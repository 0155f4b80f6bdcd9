"""What goes wrong in production: killed processes, full disks, lost stores, damaged files, a new model under load."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import httpx
import pytest

from distilrec.export.export import export_bundle
from distilrec.networks.recurrent import RecurrentConfig
from tests.servers import PATIENCE, Server, until
from tests.small_run import in_visits, timed_student

pytestmark = pytest.mark.server


class Load:
    """Threads that ask and report without pause, and remember what was acknowledged and what failed.

    Each event names the answer before it; named: the ids of events that do.
    patient: tries again where the service cannot be reached; first: number of the first event.
    """

    def __init__(
        self, server: Server, threads: int = 4, patient: bool = False, first: int = 0
    ) -> None:
        self.server, self.patient = server, patient
        self.acknowledged: list[str] = []
        self.named: set[str] = set()
        self.failed: list[str] = []
        self.versions: list[str] = []
        self.answers = 0
        self._numbers = count(first)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)

    def wait(self, events: int = 20, answers: int = 20) -> None:
        """Until so many more events have been acknowledged and so many more requests answered."""
        events, answers = len(self.acknowledged) + events, self.answers + answers
        until(
            lambda: len(self.acknowledged) >= events and self.answers >= answers,
            "the load is answered",
        )

    def _run(self, thread: int) -> None:
        answer: dict = {}
        with httpx.Client(base_url=self.server.url, timeout=PATIENCE, trust_env=False) as client:
            while not self._stop.is_set():
                number = next(self._numbers)
                event = {
                    "user_id": f"load-{thread}",
                    "item_id": f"i{number % 40}",
                    "event_id": f"e{number}",
                }
                if name := answer.pop("recommendation_id", None):
                    event["recommendation_id"] = name
                    self.named.add(event["event_id"])
                for path, body in (
                    ("events", {"events": [event]}),
                    ("recommend", {"user_id": f"load-{thread}", "k": 3}),
                ):
                    try:
                        response = client.post(f"/v1/{path}", json=body)
                    except httpx.TransportError as problem:
                        if not self.patient:
                            self.failed.append(repr(problem))
                        time.sleep(0.01)
                        continue
                    if response.status_code != 200:
                        self.failed.append(response.text)
                    elif path == "events":
                        self.acknowledged.append(event["event_id"])
                    else:
                        self.answers += 1
                        answer = response.json()
                        self.versions.append(answer["model_version"])


def stored_ids(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    try:
        return [row[0] for row in db.execute("SELECT event_id FROM events")]
    finally:
        db.close()


def counted(path: Path, measure: str) -> float:
    """A sum of outcomes in a store."""
    db = sqlite3.connect(path)
    try:
        rows = db.execute("SELECT sum(amount) FROM outcomes WHERE measure = ?", (measure,))
        return rows.fetchone()[0] or 0
    finally:
        db.close()


@pytest.mark.parametrize("rounds", [3])
def test_kill_9_loses_nothing_that_was_acknowledged(bundle, tmp_path, rounds):
    """`bench/service.py` does it 20 times."""
    path = tmp_path / "store.db"
    acknowledged: list[str] = []
    named: set[str] = set()
    answers = 0
    for number in range(rounds):
        server = Server(bundle, f"sqlite:///{path}")
        with Load(server, patient=True, first=number * 1_000_000) as load:
            load.wait()
            server.kill()
        assert load.acknowledged
        acknowledged += load.acknowledged
        named |= load.named
        answers += load.answers + 4  # which were given and did not arrive
    stored = stored_ids(path)
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    # What became of answers is counted with the events; answers are counted half a second late
    assert named & set(acknowledged)
    assert counted(path, "clicks") == counted(path, "clicked") == len(named & set(stored))
    assert counted(path, "answers") <= answers
    server = Server(bundle, f"sqlite:///{path}")
    again = [
        {"user_id": "load-0", "item_id": "i1", "event_id": event_id}
        for event_id in acknowledged[:20]
    ]
    about = server.client.get("/v1/users/load-0").json()
    first = server.post("/v1/events", events=again)  # whoever is not sure sends it again
    assert first["accepted"] + first["duplicates"] == len(again)
    assert (
        server.client.get("/v1/users/load-0").json()["event_count"]
        == about["event_count"] + first["accepted"]
    )
    assert server.post("/v1/events", events=again) == {
        "accepted": 0,
        "duplicates": len(again),
        "unknown_items": 0,
    }
    server.stop()


def test_an_orderly_stop_under_load_loses_nothing(bundle, tmp_path):
    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}")
    with Load(server, patient=True) as load:
        load.wait()
        assert server.stop() == 0
    stored = set(stored_ids(tmp_path / "store.db"))
    assert set(load.acknowledged) <= stored
    assert counted(tmp_path / "store.db", "clicks") == len(load.named & stored)
    assert load.answers <= counted(tmp_path / "store.db", "answers") <= load.answers + 4


def test_hot_swap_under_load(two_bundles, tmp_path):
    server = Server(two_bundles / "one", f"sqlite:///{tmp_path / 'store.db'}")
    first = server.client.get("/v1/model").json()["model_version"]
    with Load(server) as load:
        load.wait()
        report = server.post("/v1/model/load", bundle="two", shadow_requests=50)
        assert report["switched"] and report["previous_version"] == first
        assert report["shadow"]["requests"] == 50
        assert 0 <= report["shadow"]["agreement"] <= 1
        assert report["shadow"]["active_us"] > 0 and report["shadow"]["candidate_us"] > 0
        until(
            lambda: load.versions[-1] == report["model_version"], "the new model answers the load"
        )
        back = server.post("/v1/model/rollback")
        assert (back["model_version"], back["previous_version"]) == (first, report["model_version"])
        until(lambda: load.versions[-1] == first, "the first model answers the load again")
    assert load.failed == []
    assert set(load.versions) == {first, report["model_version"]}
    # The states of both models hold every event: they agree with a service that starts now.
    answers = server.post("/v1/recommend", user_id="load-1", k=40)["items"]
    server.post("/v1/model/load", bundle="two", shadow_requests=0)
    with_two = server.post("/v1/recommend", user_id="load-1", k=40)["items"]
    server.stop()
    for bundle, expected in (("one", answers), ("two", with_two)):
        # Started with one, a service goes on with the model that was switched to; started with two, with two.
        fresh = Server(two_bundles / bundle, f"sqlite:///{tmp_path / 'store.db'}")
        if bundle == "one":
            assert fresh.client.get("/v1/model").json()["model_version"] == report["model_version"]
            fresh.post("/v1/model/load", bundle="one", shadow_requests=0)
        found = fresh.post("/v1/recommend", user_id="load-1", k=40)["items"]
        # A state that was updated event by event differs from one folded at once in the last digit
        assert [item["item_id"] for item in found] == [item["item_id"] for item in expected]
        scores = [item["score"] for item in expected]
        assert [item["score"] for item in found] == pytest.approx(scores, abs=1e-6)
        fresh.stop()


@pytest.mark.slow
def test_what_a_user_did_after_a_question_does_not_speak_against_a_candidate(small, tmp_path):
    """The models are compared at the time of the clock."""
    student = RecurrentConfig(dim=8, max_history=12, neighbours=4, visit_gap=1800.0)
    for name in ("one", "two"):
        export_bundle(timed_student(student, in_visits(small)), small, tmp_path / name)
    server = Server(tmp_path / "one", f"sqlite:///{tmp_path / 'store.db'}")
    server.post("/v1/recommend", user_id="u1", now=time.time() - 400)
    server.event("u1", "i1")
    report = server.post(
        "/v1/model/load", bundle="two", shadow_requests=1, shadow_seconds=5, min_agreement=1.0
    )
    assert report["switched"] and report["shadow"]["agreement"] == 1.0, report


def test_a_candidate_that_is_damaged_or_disagrees_is_not_switched_to(two_bundles, tmp_path):
    server = Server(two_bundles / "one", f"sqlite:///{tmp_path / 'store.db'}")
    version = server.client.get("/v1/model").json()["model_version"]
    report = server.post(
        "/v1/model/load", bundle="two", shadow_requests=20, shadow_seconds=0.1, min_agreement=0.5
    )
    assert not report["switched"] and "no request came in" in report["reason"]
    for n in range(30):
        server.items(f"u{n}")
    report = server.post("/v1/model/load", bundle="two", shadow_requests=20, min_agreement=1.0)
    assert not report["switched"] and "agrees with the active model on" in report["reason"]
    (two_bundles / "two" / "weights.safetensors").write_bytes(b"x" * 100)
    response = server.client.post("/v1/model/load", json={"bundle": "two"})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "bundle_corrupted")
    assert server.client.get("/v1/model").json()["model_version"] == version
    assert server.items("u1")
    response = server.client.post("/v1/model/rollback")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "swap_conflict")
    server.stop()


def test_two_models_cannot_be_loaded_at_once(two_bundles, tmp_path):
    server = Server(two_bundles / "one", f"sqlite:///{tmp_path / 'store.db'}")
    statuses: list[int] = []

    def load() -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
            body = {"bundle": "two", "shadow_requests": 1, "shadow_seconds": 600}
            statuses.append(client.post("/v1/model/load", json=body).status_code)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(statuses) == 2, "all but one are refused while that one waits for a request")
    assert statuses == [409, 409]
    server.items("u1")
    for thread in threads:
        thread.join()
    assert statuses == [409, 409, 200]
    server.stop()


def test_a_swapped_model_that_is_gone_falls_back(two_bundles, tmp_path):
    store = f"sqlite:///{tmp_path / 'store.db'}"
    server = Server(two_bundles / "one", store)
    version = server.client.get("/v1/model").json()["model_version"]
    server.post("/v1/model/load", bundle="two", shadow_requests=0)
    server.stop()
    shutil.rmtree(two_bundles / "two")
    server = Server(two_bundles / "one", store)
    assert server.client.get("/v1/model").json()["model_version"] == version
    assert "cannot be loaded" in server.log.read_text()
    server.stop()


def test_a_full_disk_is_a_503_and_nothing_is_lost(bundle, tmp_path):
    """The operating system refuses to let any file of the process grow past a limit."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))

    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", preexec_fn=limit)
    acknowledged, refused = 0, None
    for number in range(400):
        events = [
            {"user_id": f"u{number}-{n}", "item_id": "i1", "event_id": "x" * 100}
            for n in range(100)
        ]
        response = server.client.post("/v1/events", json={"events": events})
        if response.status_code == 200:
            acknowledged += 100
        else:
            refused = response
            break
    assert refused is not None and acknowledged
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert refused.headers["retry-after"]
    assert server.items("u1")  # what needs no writing goes on
    assert "store_unavailable" in server.log.read_text()
    server.kill()
    assert len(stored_ids(tmp_path / "store.db")) == acknowledged
    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}")
    assert server.event("u1", "i1")["accepted"] == 1
    server.stop()


def test_a_database_damaged_while_it_is_served(bundle, tmp_path):
    path = tmp_path / "store.db"
    server = Server(bundle, f"sqlite:///{path}")
    for n in range(20):
        server.post(
            "/v1/events", events=[{"user_id": f"v{n}-{m}", "item_id": "i1"} for m in range(50)]
        )
    server.stop()
    data = bytearray(path.read_bytes())
    data[4_096:] = b"\xa5" * (len(data) - 4_096)
    path.write_bytes(data)
    server = Server(bundle, f"sqlite:///{path}", wait=False)
    assert server.process.wait(PATIENCE) == 2
    assert "[store_corrupted]" in server.log.read_text()
    assert "restore it from a backup" in server.log.read_text()
    server.client.close()


def check_without_a_store(server):
    """Neither events nor questions are answered, and callers are not told where the store is."""
    for path, body in (
        ("events", {"events": [{"user_id": "u1", "item_id": "i2"}]}),
        ("recommend", {"user_id": "u1"}),
    ):
        response = server.client.post(f"/v1/{path}", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "store_unavailable",
        )
        assert "127.0.0.1" not in response.text


def test_redis_lost_and_back(bundle, redis_server):
    server = Server(bundle, redis_server.url)
    server.event("u1", "i1", event_id="before")
    redis_server.kill()
    check_without_a_store(server)
    until(
        lambda: server.client.get("/readyz").status_code == 503,
        "the service says that it is not ready",
    )
    assert server.client.get("/healthz").status_code == 200
    redis_server.start()
    assert server.event("u1", "i2", event_id="after")["accepted"] == 1
    assert server.event("u1", "i1", event_id="before")["duplicates"] == 1
    assert {"i1", "i2"}.isdisjoint(server.items("u1", k=99))
    server.wait()
    assert server.stop() == 0


def test_two_workers_go_on_after_a_kill_and_a_crash_of_postgresql(bundle, postgresql, tmp_path):
    """Users, items and erasures are shared; a killed worker and a crashed server lose nothing."""
    (tmp_path / "password").write_text(postgresql.password)
    options = ["--store-password-file", tmp_path / "password"]
    server = Server(bundle, postgresql.address, "--workers", 2, *options)
    until(lambda: server.log.read_text().count('"event":"ready"') == 2, "both workers are ready")
    server.event("u1", "i1", event_id="before")
    assert "i1" not in server.items("u1", k=99)
    (worker, *_) = subprocess.run(
        ["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(worker), signal.SIGKILL)
    until(lambda: server.log.read_text().count('"event":"ready"') == 3, "another worker is ready")
    postgresql.crash()
    check_without_a_store(server)
    until(lambda: server.client.get("/readyz").status_code == 503, "it says that it is not ready")
    postgresql.start_again()
    until(lambda: server.client.get("/readyz").status_code == 200, "it is ready again")
    assert server.event("u1", "i2", event_id="after")["accepted"] == 1
    assert server.event("u1", "i1", event_id="before")["duplicates"] == 1
    for _ in range(6):  # both workers
        assert {"i1", "i2"}.isdisjoint(server.items("u1", k=99))
    assert server.client.delete("/v1/users/u1").status_code == 200
    assert server.items("u1") == server.items("nobody")
    assert server.stop() == 0
    assert "unforeseen" not in server.log.read_text()
    run = subprocess.run(
        [sys.executable, "-m", "distilrec.cli", "doctor", "--bundle", bundle, "--port", "0",
         "--store", postgresql.address, *map(str, options)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0 and "ok  store: PostgresqlStore" in run.stdout
    assert "fsync = off" in run.stdout


def test_several_workers_share_users_items_and_models(two_bundles, redis_server):
    """Every request may reach another process: no answer is behind what was acknowledged."""
    server = Server(two_bundles / "one", redis_server.url, "--workers", 2)
    seen: list[str] = []
    workers: set[str] = set()
    for n in range(25):
        with httpx.Client(
            base_url=server.url, timeout=PATIENCE, trust_env=False
        ) as client:  # a new connection each time
            item = f"i{n}"
            event = {"user_id": "shared", "item_id": item, "event_id": str(n)}
            assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
            seen.append(item)
        with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
            response = client.post("/v1/recommend", json={"user_id": "shared", "k": 99})
            workers.add(response.headers["x-request-id"].split("-")[0])
            assert {item["item_id"] for item in response.json()["items"]}.isdisjoint(seen)

    def ask() -> tuple[str, dict]:
        """Which worker answers a new connection, and what."""
        with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
            response = client.post("/v1/recommend", json={"user_id": "shared", "k": 99})
        return response.headers["x-request-id"].split("-")[0], response.json()

    def both_have_answered() -> bool:
        workers.add(ask()[0])
        return len(workers) == 2

    with Load(server, threads=8) as load:  # an idle machine may wake the same worker each time
        load.wait()
        until(both_have_answered, "both workers answer")
    assert load.failed == []
    server.client.put("/v1/items/fresh", json={"title": "Fresh", "features": {"price": 2.0}})
    report = server.post("/v1/model/load", bundle="two", shadow_requests=10, shadow_seconds=0.2)
    following: set[str] = set()

    def both_follow() -> bool:
        """The other worker looks every half second."""
        worker, answer = ask()
        fresh = "fresh" in {item["item_id"] for item in answer["items"]}
        if fresh and answer["model_version"] == report["model_version"]:
            following.add(worker)
        return following == workers

    with Load(server, threads=8, first=1_000_000) as later:
        until(both_follow, "both workers have the new model and the new item")
    assert later.failed == []
    for _ in range(12):
        _, answer = ask()
        assert answer["model_version"] == report["model_version"]
        assert "fresh" in {item["item_id"] for item in answer["items"]}
    server.client.delete("/v1/users/shared")
    stranger = server.items("nobody", k=99)
    for _ in range(12):
        assert [item["item_id"] for item in ask()[1]["items"]] == stranger
    text = server.client.get("/metrics").text
    accepted = float(text.split('distilrec_events_total{outcome="accepted"} ')[1].split()[0])
    assert accepted == 25 + len(load.acknowledged) + len(later.acknowledged)  # of both
    server.stop()


def test_schemathesis_finds_no_5xx(bundle, tmp_path):
    """Random requests made from the OpenAPI description, valid and invalid ones."""
    (tmp_path / "root").mkdir()
    server = Server(
        bundle,
        f"sqlite:///{tmp_path / 'store.db'}",
        "--bundle-root",
        tmp_path / "root",
        "--max-k",
        200,
    )
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json", "--max-examples", "25",
            "--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--seed", "0", "--workers", "1",
            "--max-failures", "5", "--continue-on-failure",
        ],
        capture_output=True, text=True, timeout=1_500, check=False, cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    text = server.log.read_text()
    assert server.stop() == 0
    assert run.returncode == 0, run.stdout[-4_000:] + text[-3_000:]
    assert "unforeseen" not in text
    generated, passed = re.search(r"([\d,]+) generated, ([\d,]+) passed", run.stdout).groups()
    assert generated == passed and int(generated.replace(",", "")) > 500
