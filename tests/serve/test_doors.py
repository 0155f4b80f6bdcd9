"""What the service takes as an id, whoever sends it and however it is written, and who may send anything at all."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from functools import partial

import pytest

from distilrec.errors import InvalidIdError
from distilrec.ids import as_id, as_label
from tests.servers import Redis, Server, served, until

pytestmark = pytest.mark.server

JSON = {"content-type": "application/json"}


def answered(server: Server, request: bytes) -> tuple[int, dict]:
    """Sends exactly these bytes; gives the status and the body of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as sent:
        sent.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            part = sent.recv(65_536)
            if not part:
                break
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        while len(body) < length:
            body += sent.recv(65_536)
    return int(head.split()[1]), json.loads(body)


def asked(server: Server, method: str, path: bytes, body: object = None) -> tuple[int, dict]:
    content = b"" if body is None else json.dumps(body).encode()
    kind = b"" if body is None else b"content-type: application/json\r\n"
    head = b"%s %s HTTP/1.1\r\nhost: localhost\r\n%scontent-length: %d\r\n\r\n"
    return answered(server, head % (method.encode(), path, kind, len(content)) + content)


@pytest.fixture(scope="module")
def server(bundle_copy):
    with served(bundle_copy) as service:
        yield service


# Ids in paths

NOT_IDS = [
    b"%0A", b"%0D", b"%0d%0a", b"%00", b"%09", b"%7F", b"%C2%85", b"%E2%80%A8", b"%FF", b"%ED%A0%80", b"%C0%8A", b"%EF%BF%BD",
    b"%F4%90%80%80", b"%80", b"%", b"%4", b"%zz",
]  # fmt: skip


@pytest.mark.parametrize("ending", NOT_IDS)
def test_an_id_in_a_path_is_refused_where_it_is_none(server, ending):
    """Never the user without the ending, nor the one in whose id something was replaced."""
    server.event("victim", "i1", event_id="1")
    for method, path in (("DELETE", b"/v1/users/victim"), ("GET", b"/v1/users/victim"), ("GET", b"/v1/items/i5"),
                         ("DELETE", b"/v1/items/i5")):  # fmt: skip
        status, answer = asked(server, method, path + ending)
        assert (status, answer["error"]["code"]) == (422, "id_invalid"), (method, path + ending)
    for path, body in (
        (b"/v1/users/victim", {"features": {}}),
        (b"/v1/items/i5", {"available": False}),
    ):
        assert asked(server, "PUT", path + ending, body)[0] == 422
    assert server.client.get("/v1/users/victim").json()["event_count"] == 1
    assert server.client.get("/v1/items/i5").json()["available"] is True


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"a%2Fb", "a/b"), (b"a/b", "a/b"), (b"a%3Fb%3D1", "a?b=1"), (b"a;b", "a;b"), (b"a%3Bb", "a;b"), (b"a%252Fb", "a%2Fb"),
        (b"a%250A", "a%0A"), (b"a+b", "a+b"), (b"a%20b", "a b"), (b"%20ab%20", " ab "), (b"7.0", "7"), (b"-0.0", "0"), (b"007", "007"),
        (b"%C3%A9", "é"), (b"e%CC%81", "e\u0301"), (b"..%2f..", "../.."), (b"%61", "a"), (b"a%23b", "a#b"), (b"%E2%80%8B", "\u200b"),
    ],
)  # fmt: skip
def test_an_id_in_a_path_is_one_text(server, path, name):
    status, made = asked(server, "PUT", b"/v1/items/door-" + path, {"features": {"price": 2}})
    spelled = path.decode() if path in (b"7.0", b"-0.0") else name
    assert (status, made["item_id"]) == (200, as_id("door-" + spelled))
    status, _ = asked(server, "PUT", b"/v1/users/" + path, {"features": {"age": 20}})
    assert status == 200
    assert server.post("/v1/recommend", user_id=name)["known_user"] is True
    status, erased = asked(server, "DELETE", b"/v1/users/" + path)
    assert (status, erased["user_id"]) == (200, as_id(name))


def test_paths_end_where_they_end(server):
    for path in (b"/healthz%0A", b"/v1/model%0A", b"/v1/recommend%0A", b"/v2/models/distilrec/ready%0A", b"/%0A",
                 b"/v1/users%0A", b"/v2/models/distilrec%0A/ready"):  # fmt: skip
        assert asked(server, "GET", path)[0] == 404, path
    for path in (b"/v1/users/", b"/v1/users/%20%20", b"/v1/items/"):
        status, answer = asked(server, "GET", path)
        assert (status, answer["error"]["code"]) == (422, "id_invalid")
    assert asked(server, "GET", b"/v1/users/" + b"x" * 257)[1]["error"]["code"] == "id_invalid"
    assert (
        asked(server, "GET", b"/v1/users/%C3%A9" + b"x" * 255)[0] == 404
    )  # 256 characters: an id of nobody
    assert asked(server, "GET", b"/v1/items?search=%FF")[0] == 422
    assert asked(server, "GET", b"/v1/users/\xff")[0] == 400  # no path of HTTP


# Ids in bodies


@pytest.mark.parametrize(
    "wrong",
    ["a\n", "\tb", "", "  ", "x" * 257, "\u0000", "\u2028", "\ufffd", 1.5, 1e300, 2.0**53, 10**300],
)
def test_an_id_in_a_body_follows_the_same_rule(server, wrong):
    requests = [
        ("recommend", {"user_id": wrong}),
        ("recommend/batch", {"requests": [{"user_id": "u1"}, {"user_id": wrong}]}),
        ("rank", {"user_id": wrong, "item_ids": ["i1"]}),
        ("rank", {"user_id": "u1", "item_ids": ["i1", wrong]}),
        ("rank", {"user_id": "u1", "item_ids": ["i1", wrong], "skip_unknown": True}),
        ("events", {"events": [{"user_id": wrong, "item_id": "i1"}]}),
        ("events", {"events": [{"user_id": "u1", "item_id": wrong}]}),
    ]
    if isinstance(wrong, str):
        requests += [
            ("recommend", {"user_id": "u1", "filter": {name: [wrong]}})
            for name in ("allow", "deny")
        ]
        tensor = {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": [wrong]}
        assert (
            server.client.post("/v2/models/distilrec/infer", json={"inputs": [tensor]}).status_code
            == 422
        )
    for path, body in requests:
        response = server.client.post(f"/v1/{path}", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "id_invalid"), (
            path,
            response.text,
        )


def test_whole_numbers_are_one_id_however_they_are_sent(server):
    for way, user in enumerate((77, 77.0, "77", "77.0", " 77 ")):
        server.post("/v1/events", events=[{"user_id": user, "item_id": "i3", "event_id": str(way)}])
    assert server.client.get("/v1/users/77").json()["event_count"] == 5
    server.client.put("/v1/items/77", json={"features": {"price": 2}})
    ranked = server.post("/v1/rank", user_id=77, item_ids=[77, "77", 77.0])["items"]
    assert [item["item_id"] for item in ranked] == ["77"]


@pytest.mark.parametrize(
    "event",
    [
        {"event_type": "a\nb"},
        {"event_id": "a\u0085"},
        {"event_id": "\u0000"},
        {"event_type": "\ufffd"},
    ],
)
def test_event_types_and_event_ids_are_kept_exactly_or_refused(server, event):
    response = server.client.post(
        "/v1/events", json={"events": [{"user_id": "u1", "item_id": "i1", **event}]}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (422, "id_invalid")
    assert "events[0].event_" in response.json()["error"]["message"]


def test_event_ids_are_not_numbers(server):
    events = [
        {"user_id": "exact", "item_id": "i1", "event_id": text} for text in ("1", "1.0", " 1", "01")
    ]
    assert server.post("/v1/events", events=events)["accepted"] == 4


def test_labels():
    assert as_label(" a ", "x", 3) == " a "
    for wrong in ("", "abcd", "a\n", "\udcff"):
        with pytest.raises(InvalidIdError, match="the x"):
            as_label(wrong, "x", 3)
    with pytest.raises(InvalidIdError, match="digits"):
        as_id(10**5_000)


# What was stored before there was a rule


def test_what_was_stored_under_a_text_that_is_no_id_can_be_erased(bundle, tmp_path):
    path = tmp_path / "store.db"
    first = Server(bundle, f"sqlite:///{path}")
    for user in ("lines", "two-lines", "spaced"):
        first.event(user, "i1", event_id="1")
    first.client.put("/v1/items/new-item", json={"features": {"price": 2}})
    assert first.stop() == 0
    with sqlite3.connect(path) as db:
        db.execute("UPDATE users SET user_id = ? WHERE user_id = ?", ("two\nlines", "two-lines"))
        db.execute("UPDATE users SET user_id = ? WHERE user_id = ?", (" lines ", "spaced"))
        (record,) = db.execute("SELECT record FROM items").fetchone()
        record = json.dumps({**json.loads(record), "item_id": "new\nitem"})
        db.execute("UPDATE items SET item_id = ?, record = ?", ("new\nitem", record.encode()))
    db.close()
    server = Server(bundle, f"sqlite:///{path}")
    assert asked(server, "DELETE", b"/v1/users/two%0Alines") == (
        200, {"user_id": "two\nlines", "events_removed": 1, "bundle": "clean", "store": "clean"},
    )  # fmt: skip
    assert asked(server, "DELETE", b"/v1/users/other%0Alines")[1]["error"]["code"] == "id_invalid"
    assert (
        asked(server, "DELETE", b"/v1/users/%20lines%20")[1]["events_removed"] == 2
    )  # all spellings of one id
    assert "new\nitem" not in server.items("u1", k=99)
    assert "left out" in server.log.read_text()
    assert asked(server, "DELETE", b"/v1/items/new%0Aitem") == (200, {"status": "removed"})
    for gone in (b"new%0Aitem", b"other%0Aitem"):
        assert asked(server, "DELETE", b"/v1/items/" + gone)[1]["error"]["code"] == "id_invalid"
    assert server.stop() == 0
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT user_id FROM users").fetchall() == []
    db.close()
    again = Server(bundle, f"sqlite:///{path}")
    assert again.stop() == 0
    assert "left out" not in again.log.read_text()
    with sqlite3.connect(path) as db:
        (record,) = db.execute("SELECT record FROM items").fetchone()
        assert json.loads(record)["removed"] is True
    db.close()


@pytest.mark.parametrize(
    "command",
    [
        ["recommend", "--user-id"],
        ["forget", "--user-id"],
        ["recommend", "--user-id", "u1", "--item-ids"],
    ],
)
@pytest.mark.parametrize("wrong", [b"\xff", b"u1\n", b"\x07", b"u\xed\xa0\x80", b"x" * 257])
def test_ids_on_the_command_line_follow_the_same_rule(bundle, command, wrong):
    run = subprocess.run(
        [sys.executable, "-m", "distilrec.cli", *command, wrong, "--bundle", bundle],
        capture_output=True,
        check=False,
    )
    assert (
        run.returncode == 2
        and b"error [id_invalid]" in run.stderr
        and b"Traceback" not in run.stderr
    ), run.stderr


# Where the store is


def set_password(redis_server: Redis) -> None:
    subprocess.run(
        ["redis-cli", "-p", str(redis_server.port), "config", "set", "requirepass", "tops3cret"],
        check=True,
    )


@pytest.mark.parametrize(
    "form",
    ["redis://127.0.0.1:{}/0?password=tops3cret", "redis://default:tops3cret@127.0.0.1:{}/0"],
)
def test_secrets_of_the_address_are_shown_nowhere(bundle, redis_server, form, request):
    set_password(redis_server)
    server = Server(bundle, form.format(redis_server.port))
    request.addfinalizer(server.stop)
    assert "the command line holds the password" in server.log.read_text()
    redis_server.kill()
    until(
        lambda: server.client.get("/readyz").status_code == 503,
        "the service notices that its store is gone",
    )
    response = server.client.get("/readyz")
    assert response.json()["error"]["message"] == "the store cannot be used"
    text = response.text + server.client.post("/v1/recommend", json={"user_id": "u1"}).text
    assert "127.0.0.1" not in text
    assert server.stop() == 0
    assert f"redis://127.0.0.1:{redis_server.port}/0 cannot be used" in server.log.read_text()
    assert "tops3cret" not in text + server.log.read_text()


def test_the_password_need_not_be_on_the_command_line(bundle, redis_server, tmp_path):
    set_password(redis_server)
    (tmp_path / "password").write_text("tops3cret\n")
    command = [sys.executable, "-m", "distilrec.cli", "doctor", "--bundle", bundle, "--port", "0"]
    plain = f"redis://127.0.0.1:{redis_server.port}/0"
    for more, environment in (
        (["--store", plain, "--store-password-file", tmp_path / "password"], {}),
        ([], {"DISTILREC_STORE": f"redis://:tops3cret@127.0.0.1:{redis_server.port}/0"}),
        (["--store-password-file", tmp_path / "password"], {"DISTILREC_STORE": plain}),
    ):
        environment = {**os.environ, **environment}
        run = subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0 and "ok  store: RedisStore" in run.stdout, (
            run.stdout + run.stderr
        )
    for content, words in (
        (None, "cannot be read"),
        ("\n", "is empty"),
        ("other", "cannot be used"),
    ):
        (tmp_path / "password").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "password").write_text(content)
        more = ["--store", plain, "--store-password-file", tmp_path / "password"]
        run = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert run.returncode == 1 and words in run.stdout, run.stdout + run.stderr
    more = [
        "--store",
        f"sqlite:///{tmp_path / 'x.db'}",
        "--store-password-file",
        tmp_path / "password",
    ]
    run = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "has no password" in run.stdout


@pytest.mark.parametrize(
    "address",
    [
        "redis://user:tops3cret@127.0.0.1:1/0", "redis://127.0.0.1:1/0?password=tops3cret", "redis://:tops3cret#x@h:1/0",
        "redis://:tops3cret/x@127.0.0.1:1/0", "unix:///nowhere.sock?password=tops3cret&db=1", "mysql://user:tops3cret@h/x",
        "unix://user:tops3cret@/nowhere.sock", "redis://h:1/0?socket_timeout=tops3cret", "redis://127.0.0.1:1/0#tops3cret",
        "rediss://127.0.0.1:1/0?ssl_password=tops3cret", "tops3cret@h", "postgresql://tops3cret:tops3cret@127.0.0.1:1/x",
        "redis+cluster://user:tops3cret@127.0.0.1:1,127.0.0.1:1", "rediss+cluster://127.0.0.1:1/tops3cret",
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_an_address_that_does_not_work_keeps_its_secret(bundle, address, command):
    run = subprocess.run(
        [sys.executable, "-m", "distilrec.cli", command, "--bundle", bundle, "--store", address],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode in (1, 2)
    assert "tops3cret" not in run.stdout + run.stderr and "Traceback" not in run.stderr
    assert re.search(r"store|address", run.stdout + run.stderr)


# Who may ask a service without keys

REBOUND = {"host": "attacker.example:8000"}


@pytest.mark.parametrize(
    ("headers", "answers"),
    [
        ({}, True),
        ({"host": "localhost:1"}, True), ({"host": "LocalHost."}, True), ({"host": "127.0.0.1"}, True), ({"host": "[::1]:80"}, True),
        ({"host": "10.1.2.3:80"}, True), ({"host": "distilrec:8000"}, True), ({"host": "app.localhost"}, True),
        ({"host": "shop.example"}, True), ({"host": "SHOP.example:443"}, True),
        (REBOUND, False), ({"host": "127.0.0.1.attacker.example"}, False), ({"host": "localhost.attacker.example"}, False),
        ({"host": "attacker.example@127.0.0.1"}, True), ({"host": "127.0.0.1@attacker.example"}, False), ({"host": ""}, False),
        ({"host": "a b.example"}, False), ({"host": "shop.example.attacker.example"}, False),
        ({"origin": "https://attacker.example"}, False), ({"origin": "null"}, False),
        ({"origin": "https://attacker.example", "sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False), ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "same-origin"}, True), ({"sec-fetch-site": "none"}, True),
        ({"host": "localhost:7", "origin": "http://localhost:7"}, True), ({"host": "localhost:7", "origin": "http://localhost:8"}, False),
        ({"origin": "https://shop.example"}, True), ({"origin": "https://shop.example:8", "sec-fetch-site": "same-site"}, True),
        ({"host": "attacker.example", "origin": "http://attacker.example"}, False),
        ({"host": "attacker.example", "sec-fetch-site": "same-origin"}, False),
    ],
)  # fmt: skip
def test_web_pages_of_others_are_refused_without_keys(open_server, headers, answers):
    for method, path, body in (
        ("POST", "/v1/recommend", {"user_id": "u1"}), ("GET", "/v1/users", None), ("GET", "/metrics", None),
        ("POST", "/v1/model/rollback", None), ("DELETE", "/v1/users/of-nobody", None), ("GET", "/v2/models/distilrec", None),
    ):  # fmt: skip
        response = open_server.client.request(method, path, json=body, headers=headers)
        if answers:
            assert response.status_code in (200, 409), response.text
        else:
            assert response.status_code == 403
            if not path.startswith("/v2"):
                assert response.json()["error"]["code"] == "origin_refused"
    for path in ("/healthz", "/readyz", "/v2/health/live", "/"):
        assert open_server.client.get(path, headers=headers).status_code == 200


@pytest.fixture(scope="module")
def open_server(bundle_copy):
    store = f"sqlite:///{bundle_copy.parent / 'open.db'}"
    service = Server(bundle_copy, store, "--allowed-hosts", "shop.example, other.example")
    yield service
    service.stop()


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"]
)
def test_the_form_of_a_page_does_nothing(server, kind):
    for path in ("/v1/model/rollback", "/v1/model/load", "/v1/events"):
        response = server.client.post(path, content=b"a=b", headers={"content-type": kind})
        assert (response.status_code, response.json()["error"]["code"]) == (415, "media_type")
    assert (
        server.client.post("/v1/model/rollback", headers=JSON).json()["error"]["code"]
        == "swap_conflict"
    )


# Keys


def made_key(name: str, *options: object) -> tuple[str, str]:
    """A secret and its entry."""
    command = [sys.executable, "-m", "distilrec.cli", "key", "--name", name, *map(str, options)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stderr.split()[-1], run.stdout


def complaints(server: Server) -> int:
    return server.log.read_text().count("cannot be read: the keys stay")


def more_complaints(server: Server, before: int) -> bool:
    return complaints(server) > before


def test_keys_are_read_again_when_their_file_changes(bundle, tmp_path, request):
    (one, first), (two, second) = made_key("one"), made_key("two", "--rate", 1_000)
    path = tmp_path / "keys.toml"
    path.write_text(first)
    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--keys", path)
    request.addfinalizer(server.stop)

    def status(secret: str, header: str = "authorization", form: str = "Bearer {}") -> int:
        headers = {header: form.format(secret)}
        return server.client.post(
            "/v1/recommend", json={"user_id": "u1"}, headers=headers
        ).status_code

    for form in ("bearer {}", "BEARER {}", "Bearer   {}"):
        assert status(one, form=form) == 200
    assert status(one, "x-api-key", "{}") == 200
    assert status(one, form="Basic {}") == 401 and status(one, form="Bearer{}") == 401
    headers = {
        "authorization": f"Bearer {one}",
        "origin": "https://shop.example",
        "host": "api.example",
    }
    assert (
        server.client.post("/v1/recommend", json={"user_id": "u1"}, headers=headers).status_code
        == 200
    )  # has a key
    path.write_text(first + second)
    until(lambda: status(two) == 200, "a new key is valid")
    assert status(one) == 200
    for broken in ("[[key]]\nname = 1", "", "not toml ["):
        before = complaints(server)
        path.write_text(broken)
        until(partial(more_complaints, server, before), "a broken file is noticed")
        assert status(one) == status(two) == 200
    path.unlink()
    until(partial(more_complaints, server, 3), "a missing file is noticed")
    assert status(one) == 200
    (tmp_path / "new.toml").write_text(second)
    os.replace(tmp_path / "new.toml", path)
    until(lambda: status(one) == 401, "a revoked key is refused")
    assert status(two) == 200


def test_each_of_a_batch_counts_in_the_rate(bundle, tmp_path, request):
    secrets, entries = {}, ""
    for name in ("events", "batch", "users", "one"):
        secrets[name], entry = made_key(name, "--rate", 0.01, "--scopes", "recommend,events")
        entries += entry.replace("rate = 0.01", "rate = 0.01\nburst = 10")
    (tmp_path / "keys.toml").write_text(entries)
    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--keys", tmp_path / "keys.toml")
    request.addfinalizer(server.stop)

    def statuses(name: str, path: str, body: dict, times: int) -> list[int]:
        headers = {"x-api-key": secrets[name]}
        return [
            server.client.post(path, json=body, headers=headers).status_code for _ in range(times)
        ]

    events = {"events": [{"user_id": "u1", "item_id": "i1"}] * 6}
    assert statuses("events", "/v1/events", events, 3) == [
        200,
        200,
        429,
    ]  # a bucket of 10 goes into debt once
    batch = {"requests": [{"user_id": "u1"}] * 30}
    assert statuses("batch", "/v1/recommend/batch", batch, 2) == [200, 429]
    response = server.client.post(
        "/v1/recommend/batch", json=batch, headers={"x-api-key": secrets["batch"]}
    )
    assert (
        2_000 <= int(response.headers["retry-after"]) <= 2_100
    )  # 30 - 10 are owed, and one is wanted
    tensor = {"name": "user_id", "shape": [11], "datatype": "BYTES", "data": ["u1"] * 11}
    assert statuses("users", "/v2/models/distilrec/infer", {"inputs": [tensor]}, 2) == [200, 429]
    assert statuses("one", "/v1/recommend", {"user_id": "u1"}, 11) == [200] * 10 + [429]
    wrong = {
        "inputs": [{**tensor, "shape": [10**18]}]
    }  # costs no more than what could have been asked for
    assert statuses("one", "/v2/models/distilrec/infer", wrong, 1) == [429]


def test_strangers_are_not_told_the_version(bundle, tmp_path, request):
    _, entry = made_key("x")
    (tmp_path / "keys.toml").write_text(entry)
    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--keys", tmp_path / "keys.toml")
    request.addfinalizer(server.stop)
    version = json.loads((bundle / "manifest.json").read_text())["model_version"]
    for path in ("", "/versions/7", "/ready", "/versions/7/ready", "/versions/7/infer"):
        for name in ("distilrec", "other"):
            response = server.client.get(f"/v2/models/{name}{path}")
            assert version not in response.text, path
