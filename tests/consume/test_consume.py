"""Events from Kafka and from Redis streams: each counts once, whatever is killed or away meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
import redis

from distilrec.cli import main
from distilrec.consume import ConsumeConfig, Fields, consume
from distilrec.errors import ConfigError, SourceUnavailableError
from distilrec.serve.keys import new_key
from tests.consume.kafka_cluster import Kafka
from tests.servers import PATIENCE, Server, free_port, until
from tests.servers import Redis as RedisServer

pytestmark = [pytest.mark.server, pytest.mark.slow]

NAMES = (f"s{number}" for number in count())
POISON = b'{"user_id": "u1"'
LIMITS = ("--max-batch", 16, "--max-body", 2_000)


@pytest.fixture(scope="module")
def kafka():
    with Kafka() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shop(finished_run, tmp_path_factory):
    """A service with a key and tight limits, in a folder with its store; a test may kill and start it."""
    folder = tmp_path_factory.mktemp("shop")
    shutil.copytree(finished_run.bundle, folder / "bundle")
    secret, entry = new_key("consumer", ["events"], None)
    (folder / "keys.toml").write_text(entry)
    shop = Shop(folder, secret)
    shop.start()
    yield shop
    assert shop.server.stop() == 0
    assert "unforeseen" not in shop.server.log.read_text()


class Shop:
    def __init__(self, folder: Path, secret: str) -> None:
        self.folder, self.secret, self.port = folder, secret, free_port()
        self.url, self.store = f"http://127.0.0.1:{self.port}", folder / "store.db"

    def start(self) -> None:
        self.server = Server(
            self.folder / "bundle", f"sqlite:///{self.store}", "--keys", self.folder / "keys.toml",
            *LIMITS, port=self.port,
        )  # fmt: skip


def quick(folder: Path) -> Path:
    """Options of Kafka's client: the group notices soon that a member is dead."""
    path = folder / "kafka.properties"
    path.write_text(
        "# soon\nsession.timeout.ms = 1500\n\nheartbeat.interval.ms=300\nmax.poll.interval.ms=3000\n"
    )
    return path


class Consumer:
    """`distilrec consume` in a process of its own."""

    def __init__(self, folder: Path, source: str, to: str, *options: object, key: str = "") -> None:
        self.log = folder / f"consume-{time.monotonic_ns()}.log"
        command = [
            sys.executable, "-m", "distilrec.cli", "consume", "--from", source, "--to", to,
            "--dead-letters", folder / "dead.jsonl", "--metrics", folder / "consume.prom", *options,
        ]  # fmt: skip
        if source.startswith("kafka"):
            command += ["--kafka-options", quick(folder)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=log,
                env=os.environ | {"DISTILREC_KEY": key},
            )  # fmt: skip

    def says(self, event: str) -> bool:
        return self.is_alive() and f'"event":"{event}"' in self.log.read_text()

    def is_alive(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, how: int | None = None) -> str:
        """What it says in the end, without or after a signal; it ends well."""
        if how is not None:
            self.process.send_signal(how)
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        return self.log.read_text()


def stored(path: Path, prefix: str) -> Counter[str]:
    """How often each item whose name begins like this is in a store."""
    if not path.exists():
        return Counter()
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=PATIENCE)
    try:
        rows = db.execute("SELECT item_id FROM events WHERE item_id LIKE ?", (f"{prefix}-%",))
        return Counter(item for (item,) in rows)
    except sqlite3.OperationalError:  # it is being made
        return Counter()
    finally:
        db.close()


def events(prefix: str, first: int, last: int) -> list[dict[str, object]]:
    """Events on items of their own, some with an event id."""
    return [
        {"user_id": f"u{n % 7}", "item_id": f"{prefix}-{n}"} | ({"event_id": f"{prefix}{n}"} if n % 3 else {})
        for n in range(first, last)
    ]  # fmt: skip


def encoded(prefix: str, first: int, last: int) -> list[bytes]:
    return [json.dumps(event).encode() for event in events(prefix, first, last)]


def once(prefix: str, number: int) -> Counter[str]:
    return Counter(f"{prefix}-{n}" for n in range(number))


def letters(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "dead.jsonl").read_text().splitlines()]


def metric(folder: Path, name: str) -> float:
    found = re.findall(
        rf"^distilrec_consume_{name} (\S+)$", (folder / "consume.prom").read_text(), re.M
    )
    return float(found[0])


# --- kill -9 ---

KILLS = int(os.environ.get("KILLS", "3"))


def killed_again_and_again(start, send, found, number: int) -> None:
    """Kills a consumer at random moments while there is something to consume, and lets one finish."""
    rng, sent = random.Random(), 0
    for _ in range(KILLS):
        send(sent, sent + number)
        before, sent = found().total(), sent + number
        consumer = start()
        some = rng.randint(1, number // 2)
        while consumer.is_alive() and found().total() < before + some:
            time.sleep(0.01)
        consumer.kill()
        assert found().total() < sent, "it was killed too late to show anything"


def test_a_consumer_from_kafka_to_a_service_is_killed(kafka, shop, tmp_path, monkeypatch):
    source, name, number = kafka.topic("killed"), next(NAMES), 300

    def start(*more: object) -> Consumer:
        given = "--batch", 10, "--group", "killed", *more
        return Consumer(tmp_path, source, shop.url, *given, key=shop.secret)

    def send(first: int, last: int) -> None:
        kafka.send("killed", [*encoded(name, first, last), POISON, None])

    killed_again_and_again(start, send, lambda: stored(shop.store, name), number)
    monkeypatch.setenv("DISTILREC_KEY", shop.secret)
    options = {
        "dead_letters": str(tmp_path / "dead.jsonl"),
        "metrics": str(tmp_path / "consume.prom"),
        "kafka_options": str(quick(tmp_path)),
        "until_empty": True,
    }
    assert consume(ConsumeConfig(source, shop.url, group="killed", **options)).messages > 0
    assert stored(shop.store, name) == once(name, KILLS * number)
    kept = letters(tmp_path)
    assert Counter(letter["reason"] for letter in kept) == {"request_malformed": 2 * KILLS}
    assert len({letter["position"] for letter in kept}) == 2 * KILLS
    assert [letter["value"] for letter in kept if "value" in letter] == [POISON.decode()] * KILLS
    assert metric(tmp_path, "lag") == 0
    # What the group has read it does not read again
    assert consume(ConsumeConfig(source, shop.url, group="killed", **options)).messages == 0
    # Another group reads everything again, and nothing counts twice
    again = consume(ConsumeConfig(source, shop.url, group="another", **options))
    assert (again.messages, again.delivered) == (KILLS * (number + 2), 0)
    assert (again.duplicates, again.dead.total()) == (KILLS * number, 0)
    assert stored(shop.store, name) == once(name, KILLS * number)


def test_a_consumer_from_a_stream_to_a_store_is_killed(shared_redis, tmp_path):
    name, number, path = next(NAMES), 300, tmp_path / "own.db"
    client = redis.Redis(port=shared_redis.port)
    source = f"redis-stream://127.0.0.1:{shared_redis.port}/0/{name}"

    def start(*more: object) -> Consumer:
        return Consumer(tmp_path, source, f"sqlite:///{path}", "--batch", 10, *more)

    def send(first: int, last: int) -> None:
        with client.pipeline() as pipe:
            for event in [*events(name, first, last), {"user_id": "\x00", "item_id": "1"}]:
                pipe.xadd(name, event)
            pipe.execute()

    killed_again_and_again(start, send, lambda: stored(path, name), number)
    start("--until-empty").end()
    assert stored(path, name) == once(name, KILLS * number)
    assert [letter["reason"] for letter in letters(tmp_path)] == ["id_invalid"] * KILLS
    (group,) = client.xinfo_groups(name)
    assert (group["pending"], group["lag"]) == (0, 0)
    client.close()


# --- away for a while ---


def test_a_service_that_is_away_loses_nothing(kafka, shop, tmp_path):
    source, name = kafka.topic("away"), next(NAMES)
    shop.server.kill()
    kafka.send("away", encoded(name, 0, 50))
    options = {"group": "away", "dead_letters": str(tmp_path / "dead.jsonl")}
    config = ConsumeConfig(source, shop.url, kafka_options=str(quick(tmp_path)), **options)
    stop = threading.Event()
    threading.Timer(2.0, stop.set).start()
    assert consume(config, stop).messages == 0  # it is told to end while it waits
    consumer = Consumer(tmp_path, source, shop.url, "--group", "away", key=shop.secret)
    until(lambda: consumer.says("waiting"), "it waits")
    kafka.send("away", encoded(name, 50, 100))
    time.sleep(3.5)  # longer than a member of the group may be without a sign of life
    shop.start()
    until(lambda: stored(shop.store, name) == once(name, 100), "all events are stored")
    until(lambda: consumer.says("going on"), "it goes on")
    assert "source_unavailable" not in consumer.end(signal.SIGTERM)
    assert metric(tmp_path, "messages_total") == 100
    assert metric(tmp_path, "retries_total") > 0
    assert metric(tmp_path, "lag") == 0


def test_sources_that_are_away_are_waited_for(tmp_path, redis_server):
    """Both in this process: Kafka, and Redis, whose streams are there again after a restart."""
    with Kafka() as cluster:
        source, name = cluster.topic("back"), next(NAMES)
        streams = f"redis-stream://127.0.0.1:{redis_server.port}/0/{name}"
        client = redis.Redis(port=redis_server.port)
        stop, tallies = threading.Event(), {}

        def run(kind: str, address: str) -> None:
            to = f"sqlite:///{tmp_path / kind}.db"
            options = {"dead_letters": str(tmp_path / f"{kind}.jsonl")}
            if kind == "kafka":
                options["kafka_options"] = str(quick(tmp_path))
            config = ConsumeConfig(address, to, **options)
            tallies[kind] = consume(config, stop)

        def all_are_stored(number: int) -> bool:
            found = [stored(tmp_path / f"{kind}.db", name).total() for kind in ("kafka", "redis")]
            return found == [number, number]

        def send(first: int, last: int) -> None:
            cluster.send("back", encoded(name, first, last))
            for event in events(name, first, last):
                client.xadd(name, event)

        threads = [
            threading.Thread(target=run, args=given) for given in (("kafka", source), ("redis", streams))
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        send(0, 20)
        until(lambda: all_are_stored(20), "the first events are stored")
        cluster.set_up(False)
        redis_server.kill()
        time.sleep(1.0)
        cluster.set_up(True)
        redis_server.start()
        send(20, 40)
        until(lambda: all_are_stored(40), "the events after the failure are stored")
        client.delete(name)  # with its group
        client.xadd(name, events(name, 40, 41)[0])
        cluster.send("back", encoded(name, 40, 41))
        until(lambda: all_are_stored(41), "the events of a new stream are stored")
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert {kind: tally.delivered for kind, tally in tallies.items()} == {
            "kafka": 41,
            "redis": 41,
        }
        assert tallies["redis"].retries > 0
        client.close()


def test_what_a_dead_consumer_had_is_taken_over(shared_redis, tmp_path):
    name, client = next(NAMES), redis.Redis(port=shared_redis.port)
    for event in events(name, 0, 30):
        client.xadd(name, event)
    client.xgroup_create(name, "distilrec", id="0")
    client.xreadgroup("distilrec", "dead", {name: ">"}, count=10)
    (trimmed,) = client.xrange(name, count=1)
    client.xdel(name, trimmed[0])
    config = ConsumeConfig(
        f"redis-stream://127.0.0.1:{shared_redis.port}/0/{name}", f"sqlite:///{tmp_path / 'own.db'}",
        name="other", claim_after=0.0, until_empty=True,
    )  # fmt: skip
    tally = consume(config)
    assert stored(tmp_path / "own.db", name) == once(name, 30) - Counter([f"{name}-0"])
    assert (tally.messages, tally.expired) == (29, 1)
    assert client.xinfo_groups(name)[0]["pending"] == 0
    # The same where a consumer itself comes back, and one of its entries was trimmed meanwhile
    client.xadd(name, events(name, 30, 31)[0])
    client.xadd(name, events(name, 31, 32)[0])
    ((_, read),) = client.xreadgroup("distilrec", "other", {name: ">"}, count=10)
    client.xdel(name, read[0][0])
    assert (consume(config).delivered, consume(config).messages) == (1, 0)
    client.close()


# --- what a service says ---


def test_what_a_service_refuses_is_a_dead_letter_and_the_rest_goes_on(
    kafka, shop, tmp_path, monkeypatch
):
    """More events than it takes in one request, and one that is larger than it allows."""
    source, name = kafka.topic("refused"), next(NAMES)
    large = {
        "user_id": "\U0001f600" * 256,
        "item_id": "\U0001f600" * 256,
        "event_id": "\U0001f600" * 128,
    }
    large |= {"event_type": "\U0001f600" * 64, "recommendation_id": "\U0001f600" * 64}
    kafka.send(
        "refused",
        [*encoded(name, 0, 30), *[json.dumps(large).encode()] * 2, *encoded(name, 30, 60)],
    )
    monkeypatch.setenv("DISTILREC_KEY", shop.secret)
    options = {
        "group": "refused",
        "dead_letters": str(tmp_path / "dead.jsonl"),
        "until_empty": True,
    }
    assert consume(ConsumeConfig(source, shop.url, **options)).delivered == 60
    assert stored(shop.store, name) == once(name, 60)
    assert [letter["reason"] for letter in letters(tmp_path)] == ["request_invalid"] * 2
    assert "body_too_large" in letters(tmp_path)[0]["message"]


def test_without_a_valid_key_nothing_is_read(kafka, shop, tmp_path, capfd, monkeypatch):
    source, name = kafka.topic("key"), next(NAMES)
    kafka.send("key", encoded(name, 0, 5))
    command = ["consume", "--from", source, "--to", shop.url, "--until-empty", "--group", "key"]
    monkeypatch.setenv("DISTILREC_KEY", "dr_wrong")
    with pytest.raises(SystemExit) as ended:
        main([*command, "--kafka-options", str(quick(tmp_path))])
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert "error [service_failed]" in said and "DISTILREC_KEY" in said and "dr_wrong" not in said
    monkeypatch.setenv("DISTILREC_KEY", shop.secret)
    main([*command, "--kafka-options", str(quick(tmp_path))])
    assert "5 messages: 5 new events" in capfd.readouterr().out


# --- how messages are read ---


def test_fields_units_and_places_to_begin(shared_redis, tmp_path):
    name, client = next(NAMES), redis.Redis(port=shared_redis.port)
    address = f"redis-stream://localhost:{shared_redis.port}/0/a%2F{name}"
    old = {"customer": "c", "sku": f"{name}-0"}
    client.xadd(f"a/{name}", {"event": json.dumps(old)})
    path = tmp_path / "own.db"
    config = ConsumeConfig(
        address, f"sqlite:///{path}", fields=Fields(user_id="customer", item_id="sku", timestamp="at"),
        json_field="event", time_unit="ms", ignore_other_fields=True, begin="newest", until_empty=True,
        metrics=str(tmp_path / "consume.prom"),
    )  # fmt: skip
    assert consume(config).messages == 0
    new = {
        "customer": "c",
        "sku": f"{name}-1",
        "at": 1_764_000_000_500,
        "page": "cart",
        "recommendation_id": "r",
    }
    place = client.xadd(f"a/{name}", {"event": json.dumps(new)})
    client.xadd(f"a/{name}", {"event": json.dumps(old)}, id=f"{place.decode().split('-')[0]}-7")
    tally = consume(config)
    assert (tally.messages, tally.delivered, tally.unattributed) == (2, 2, 1)
    assert "1 events name an answer" in tally.line
    db = sqlite3.connect(path)
    first, second = db.execute("SELECT timestamp FROM events ORDER BY position").fetchall()
    db.close()
    assert first[0] == 1_764_000_000.5
    assert second[0] == int(place.decode().split("-")[0]) / 1_000  # that of the entry
    assert metric(tmp_path, "lag") == 0
    assert metric(tmp_path, "last_commit_timestamp_seconds") == pytest.approx(tally.last_commit)
    client.close()


# --- what cannot be ---


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("events", "not the address of a source"),
        ("kafka:///events", "not the address of a source"),
        ("http://x/y", "not the address of a source"),
        ("kafka://user:secret@b:1/events", "holds a password"),
        ("redis-stream://:secret@h/0/s", "holds a password"),
        ("redis-stream://h/0/s?password=secret", "holds a password"),
        ("kafka://b:1", "names no topic"),
        ("kafka://b:1/a/b", "names no topic"),
        ("kafka://user@b:1/events", "names no topic"),
        ("redis-stream://h/events", "names no database"),
        ("redis-stream://h:x/0/s", "no valid port"),
    ],
)
def test_addresses_that_cannot_be(source, words, tmp_path):
    with pytest.raises(ConfigError, match=words) as found:
        consume(ConsumeConfig(source, f"sqlite:///{tmp_path / 'own.db'}"))
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("nonsense", "line 1: no `name = value`"),
        ("\ngroup.id = x", "line 2: group.id is not yours to set"),
        ("no.such.option = 1", "refuses its options"),
    ],
)
def test_options_of_kafka_that_cannot_be(options, words, tmp_path):
    (tmp_path / "kafka.properties").write_text(options)
    config = ConsumeConfig(
        "kafka://127.0.0.1:1/t", f"sqlite:///{tmp_path / 'own.db'}", kafka_options=str(tmp_path / "kafka.properties")
    )  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        consume(config)


def test_sources_that_do_not_answer(kafka, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILREC_SOURCE_PASSWORD", "secret")
    to = f"sqlite:///{tmp_path / 'own.db'}"
    with pytest.raises(SourceUnavailableError, match="check that the server runs") as found:
        consume(ConsumeConfig(f"redis-stream://127.0.0.1:{free_port()}/0/s", to))
    assert "secret" not in str(found.value)
    monkeypatch.delenv("DISTILREC_SOURCE_PASSWORD")
    kafka.topic("there")
    with pytest.raises(ConfigError, match="there is no such topic"):
        consume(ConsumeConfig(f"kafka://{kafka.brokers}/missing", to))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--to", "redis://:secret@h/0"], "--to holds a password"),
        (["--to", "nothing"], "not the address of a store"),
        (["--to", "sqlite:///own.db", "--fields", "user=x"], "--fields has the part 'user=x'"),
        (["--to", "sqlite:///own.db", "--fields", "user_id"], "--fields has the part 'user_id'"),
        (["--to", "sqlite:///own.db", "--fields", "user_id=a,item_id=a"], "name 'a' twice"),
        (["--to", "sqlite:///own.db", "--batch", "0"], "batch is 0"),
    ],
)
def test_options_that_cannot_be(given, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["consume", "--from", "kafka://127.0.0.1:1/t", *given])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in said and "secret" not in said
