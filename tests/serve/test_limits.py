"""One caller cannot stop the service for the others: heads, connections, slow senders, costly requests."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distilrec import load
from tests.servers import Server, served

pytestmark = pytest.mark.server

REQUEST = (
    b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%s\r\n"
)
BODY = b'{"user_id": "u1"}'


@pytest.fixture(scope="module")
def server(bundle_copy):
    with served(
        bundle_copy, "--max-connections", 40, "--head-seconds", 2, "--transfer-seconds", 3
    ) as service:
        yield service


class Peer:
    """One connection, byte by byte."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), 30)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the service may have hung up
            self.socket.sendall(data)

    def answer(self) -> tuple[int, dict]:
        """Status and body; 0 where the connection was closed without an answer."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in received:
                part = self.socket.recv(65_536)
                if not part:
                    return 0, {}
                received += part
            head, _, body = received.partition(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])
            while len(body) < length:
                body += self.socket.recv(65_536)
            return int(head.split()[1]), json.loads(body)
        return 0, {}

    def is_closed(self) -> bool:
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def connect(server):
    opened = []

    def new() -> Peer:
        opened.append(Peer(server))
        return opened[-1]

    yield new
    for peer in opened:
        peer.close()


def memory(server: Server) -> int:
    """MiB of the server, now."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) // 1024


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"x: %s\r\n" % (b"a" * 30_000), 200),
        (b"x: %s\r\n" % (b"a" * 40_000), 431),
        (b"".join(b"x%d: %s\r\n" % (n, b"a" * 4_000) for n in range(7)), 200),
        (b"".join(b"x%d: %s\r\n" % (n, b"a" * 4_000) for n in range(9)), 431),
        (b"".join(b"x%d: \r\n" % n for n in range(95)), 200),
        (b"".join(b"x%d: \r\n" % n for n in range(101)), 431),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_the_bytes_of_a_head_are_limited(connect, head, status, pieces):
    """However they are cut, and whatever follows: a large body in the same piece is not counted."""
    large = json.dumps({"user_id": "u1", "filter": {"deny": ["x"] * 9_000}}).encode()
    for body in (BODY, large):
        peer = connect()
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = REQUEST % (head + b"content-length: %d\r\n" % len(body)) + body
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            peer.send(data[start : start + size])
        answered, answer = peer.answer()
        assert answered == status, answer
        if status == 431:
            assert answer["error"]["code"] == "headers_too_large"
        else:  # and so for the next request on the same connection
            peer.send(data)
            assert peer.answer()[0] == 200


@pytest.mark.parametrize("endless", [b"x: %s" % (b"a" * 65_536), b"GET /%s" % (b"a" * 65_536)])
def test_an_endless_head_costs_nothing(server, connect, endless):
    before = memory(server)
    peer = connect()
    peer.send(endless if endless.startswith(b"GET") else b"GET / HTTP/1.1\r\n" + endless)
    for _ in range(1_000):
        peer.send(b"a" * 65_536)
    assert peer.answer()[0] in (431, 0)
    assert memory(server) < before + 50
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "unit", [b"1;%s\r\na\r\n" % (b"e" * 60_000), b"0\r\n" + b"t: %s\r\n" % (b"a" * 60_000)]
)
def test_what_surrounds_a_body_in_chunks_is_limited_too(server, connect, unit):
    before = memory(server)
    peer = connect()
    peer.send(REQUEST % b"transfer-encoding: chunked\r\n")
    for _ in range(200):
        peer.send(unit)
        unit = unit.removeprefix(b"0\r\n")
    assert peer.answer()[0] in (431, 0)
    assert memory(server) < before + 50


def test_a_body_in_small_chunks_is_read(connect):
    peer = connect()
    peer.send(
        REQUEST % b"transfer-encoding: chunked\r\n"
        + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
        + b"0\r\n\r\n"
    )
    assert peer.answer()[0] == 200


def test_slow_senders_are_closed(server, connect):
    """Byte by byte: the time counts from the beginning, not from the last byte."""
    started = time.monotonic()
    silent, head, body, after = connect(), connect(), connect(), connect()
    after.send(REQUEST % b"content-length: 17\r\n" + BODY)
    assert after.answer()[0] == 200
    body.send(REQUEST % b"content-length: 10000\r\n")
    for _ in range(35):
        head.send(b"GET / HTTP/1.1\r\nx: y\r\n" if _ == 0 else b"a")
        body.send(b" ")
        after.send(b"P" if _ == 0 else b"")
        time.sleep(0.1)  # what a slow sender does
    assert head.answer()[0] == 408 and body.answer()[0] == 408 and after.answer()[0] == 408
    assert silent.answer()[0] == 0
    assert time.monotonic() - started < 20
    text = server.client.get("/metrics").text
    assert 'distilrec_errors_total{code="request_timeout",endpoint="connection"} 3.0' in text


def test_what_is_no_http_is_an_error_like_others(connect):
    for wrong in (
        b"HELLO\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /v1/users/\xff HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
    ):
        peer = connect()
        peer.send(wrong)
        status, answer = peer.answer()
        assert (status, answer["error"]["code"]) == (400, "request_malformed"), wrong
        assert peer.is_closed()


def test_connections_are_limited_and_idle_ones_make_room(server, connect):
    idle = [connect() for _ in range(30)]
    for peer in idle:
        peer.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert peer.answer()[0] == 200
    for _ in range(60):  # each takes the place of an idle one
        peer = connect()
        peer.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert peer.answer()[0] == 200
    busy = [connect() for _ in range(60)]  # these have not sent anything yet
    statuses = []
    for peer in busy:
        peer.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        statuses.append(peer.answer()[0])
    assert set(statuses) <= {200, 503, 0} and statuses.count(200) >= 30


def test_who_does_not_read_is_let_go(server, connect):
    """Answers of several megabytes, never read: the service gives them up after a while."""
    before = memory(server)
    body = json.dumps({"requests": [{"user_id": "u1", "k": 40, "titles": True}] * 1_000}).encode()
    peers = []
    for _ in range(10):
        peer = connect()
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.send(b"POST /v1/recommend/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                  b"content-length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
        peers.append(peer)
    deadline = time.monotonic() + 60
    while open_connections(server) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert memory(server) < before + 200


def open_connections(server: Server) -> int:
    """Established connections of the server, by the kernel."""
    rows = Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]
    local = f":{server.port:04X}"
    return sum(1 for row in rows if row.split()[1].endswith(local) and row.split()[3] == "01")


# Costly requests


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("recommend", {"user_id": "u1", "k": 201, "explain": True}, "explained items in a request: 201"),
        ("recommend", {"user_id": "u1", "k": 201, "diversity": 0.5}, "k of a diversified list: 201"),
        ("recommend/batch", {"requests": [{"user_id": "u1", "k": 10, "explain": True}] * 21}, "explained items in a request: 210"),
        ("recommend/batch", {"requests": [{"user_id": "u1", "k": 1_000}] * 51}, "items in all answers of a request: 51,000"),
        ("recommend", {"user_id": "u1", "filter": {"deny": ["x"] * 10_001}}, "ids and categories in a filter: 10,001"),
        ("recommend", {"user_id": "u1", "filter": {"attributes": {"genres": {"any_of": ["g1"] * 10_001}}}}, "in a filter: 10,001"),
        ("recommend", {"user_id": "u1", "filter": {"attributes": {f"a{n}": {} for n in range(33)}}}, "conditions in a filter: 33"),
        ("rank", {"user_id": "u1", "item_ids": [f"i{n}" for n in range(201)], "explain": True}, "explained items in a request: 201"),
    ],
)  # fmt: skip
def test_what_would_take_too_long_is_refused(server, path, body, words):
    response = server.client.post(f"/v1/{path}", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "request_invalid"), error
    assert words in error["message"] and "limit of" in error["message"]


def test_what_is_allowed_is_answered(server):
    answer = server.post("/v1/recommend", user_id="u1", k=200, explain=True, diversity=0.3)
    assert answer["items"]
    results = server.post(
        "/v1/recommend/batch", requests=[{"user_id": f"u{n}", "k": 40} for n in range(1_000)]
    )["results"]
    assert [result["user_id"] for result in results] == [f"u{n}" for n in range(1_000)]
    tensor = {"name": "user_id", "shape": [51], "datatype": "BYTES", "data": ["u1"] * 51}
    k = {"name": "k", "shape": [1], "datatype": "INT64", "data": [1_000]}
    response = server.client.post("/v2/models/distilrec/infer", json={"inputs": [tensor, k]})
    assert response.status_code == 422 and "51,000" in response.json()["error"]


def test_requests_with_large_filters_are_not_remembered(server):
    body = {"user_id": "u1", "filter": {"attributes": {"genres": {"any_of": ["g" * 900_000]}}}}
    server.post("/v1/recommend", **body)
    before = memory(server)
    for _ in range(150):
        server.post("/v1/recommend", **body)
    assert memory(server) < before + 100  # not 150 x 0.9 MB


class Watch:
    """Asks /healthz without pause while something costly is done; the slowest answer is `slowest` seconds."""

    def __init__(self, server: Server) -> None:
        self.server, self.slowest, self.answers = server, 0.0, 0

    def __enter__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
        while not self._stop.is_set():
            started = time.perf_counter()
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
            self.slowest = max(self.slowest, time.perf_counter() - started)
            self.answers += 1
        connection.close()

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


# The service promises 50 ms on an idle machine. Others may have the processor here for a tenth of a second and more, and what this
# guards against were 1 to 5 seconds.
PROMPT = 0.5


def test_health_is_answered_while_a_long_log_is_folded_again(bundle, tmp_path, request):
    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}")
    request.addfinalizer(server.stop)
    for start in range(0, 60_000, 1_000):
        events = [
            {"user_id": "long", "item_id": f"i{n % 40}", "timestamp": 1e9 + n}
            for n in range(start, start + 1_000)
        ]
        server.post("/v1/events", events=events)
    server.items("long")
    late = {"user_id": "long", "item_id": "i1", "timestamp": 1e9 + 0.5}
    with Watch(server) as watch:
        for n in range(3):
            server.post("/v1/events", events=[{**late, "event_id": f"late-{n}"}])
            ranked = server.post("/v1/rank", user_id="long", item_ids=[f"i{n}" for n in range(40)])[
                "items"
            ]
            server.client.get("/v1/users/long")
    assert watch.slowest < PROMPT and watch.answers > 10
    library = load(bundle)
    library.update(
        [{"user_id": "long", "item_id": "i0"}, *[{"user_id": "long", "item_id": "i1"}] * 3]
    )
    library.update([{"user_id": "long", "item_id": f"i{n % 40}"} for n in range(1, 60_000)])
    expected = library.recommend("long", [f"i{n}" for n in range(40)])
    assert [item["item_id"] for item in ranked] == [answer.item_id for answer in expected]
    assert [item["score"] for item in ranked] == pytest.approx(
        [answer.score for answer in expected], abs=1e-3
    )
    assert server.client.get("/v1/users/long").json()["event_count"] == 60_003


def test_health_is_answered_during_costly_requests(server):
    heavy = [
        ("/v1/recommend/batch", {"requests": [{"user_id": f"u{n % 60}", "k": 40, "titles": True} for n in range(1_000)]}),
        ("/v1/recommend/batch", {"requests": [{"user_id": f"u{n}", "k": 4, "explain": True, "diversity": 0.5} for n in range(50)]}),
        ("/v1/recommend", {"user_id": "u1", "filter": {"deny": [f"x{n}" for n in range(10_000)]}}),
    ]  # fmt: skip
    with Watch(server) as watch, ThreadPoolExecutor(8) as pool:
        made = [pool.submit(server.client.post, path, json=body) for path, body in heavy * 8]
        assert {request.result().status_code for request in made} == {200}
    assert watch.slowest < PROMPT


def test_health_is_answered_while_another_program_keeps_an_erasure_waiting(
    bundle, tmp_path, request
):
    path = tmp_path / "store.db"
    server = Server(bundle, f"sqlite:///{path}")
    request.addfinalizer(server.stop)
    server.event("gone", "i1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM events").fetchone()
    server.event("gone", "i2")
    with Watch(server) as watch:
        assert server.client.delete("/v1/users/gone").json()["events_removed"] == 2
        assert server.event("stays", "i1")["accepted"] == 1 and server.items("nobody")
    assert watch.slowest < PROMPT
    other.close()
