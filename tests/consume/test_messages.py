"""From a message to an event, or to a dead letter with its reason."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.consume import ConsumeConfig, Fields
from distilrec.consume.dead_letters import DeadLetters
from distilrec.consume.messages import DeadLetter, EventReader, Message, dead_letter, stable_id
from distilrec.engine.events import MAX_EVENT_ID
from distilrec.errors import ConfigError, DistilrecError, StorageError
from tests.killed import killed

NOW = 1_764_000_000.0


def reader(**options) -> EventReader:
    return EventReader(ConsumeConfig(source="kafka://b/t", to="sqlite:///x", **options))


def message(value: object = None, parts: dict | None = None, when: float | None = NOW) -> Message:
    raw = value if isinstance(value, bytes | None) else msgspec.json.encode(value)
    return Message("t/0/7", "the-place", when, raw, parts)


def test_an_event_of_our_own_is_read_as_it_is():
    given = {
        "user_id": 7, "item_id": "50", "event_type": "buy", "timestamp": NOW - 5, "event_id": "order-1",
        "recommendation_id": "r", "position": 3, "value": 19.9,
    }  # fmt: skip
    assert msgspec.structs.asdict(reader().read(message(given))) == given


def test_what_a_message_does_not_say_comes_from_its_place_and_time():
    event = reader().read(message({"user_id": 7, "item_id": 50}))
    assert (event.event_id, event.timestamp) == ("the-place", NOW)
    assert reader().read(message({"user_id": 7, "item_id": 50}, when=None)).timestamp is None


def test_fields_have_names_and_may_lie_within_objects():
    fields = Fields(
        user_id="customer", item_id="payload.sku", timestamp="payload.at", event_id="a.b"
    )
    given = {
        "customer": "c",
        "payload": {"sku": "s", "at": 1_764_000_000_123, "more": 1},
        "a.b": "id",
    }
    event = reader(fields=fields, time_unit="ms").read(message(given))
    assert (event.user_id, event.item_id, event.event_id) == ("c", "s", "id")
    assert event.timestamp == pytest.approx(1_764_000_000.123)


@pytest.mark.parametrize(
    "when", ["2025-11-24T16:00:00Z", "2025-11-24T17:00:00+01:00", "1764000000", NOW]
)
def test_times_are_numbers_or_iso_8601_with_a_zone(when):
    event = reader().read(message({"user_id": 1, "item_id": 2, "timestamp": when}))
    assert event.timestamp == NOW


def test_fields_of_an_entry_are_texts():
    parts = {
        "user_id": "007",
        "item_id": "50",
        "timestamp": str(NOW),
        "position": "2",
        "value": "1.5",
    }
    event = reader().read(message(parts=parts))
    assert (event.user_id, event.position, event.value, event.timestamp) == ("007", 2, 1.5, NOW)
    event = reader(json_field="e").read(
        message(parts={"e": '{"user_id": 1, "item_id": 2}', "x": ""})
    )
    assert (event.user_id, event.item_id) == (1, 2)


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (None, "request_malformed", "the message is empty"),
        (b"", "request_malformed", "the message is empty"),
        (b"{", "request_malformed", "the message is not JSON"),
        (b"\xff\x00", "request_malformed", "the message is not JSON"),
        (b"[" * 100_000, "request_malformed", "the message is not JSON"),
        (b"7", "request_invalid", "not an object"),
        ({"user_id": 1}, "request_invalid", "no field 'item_id'"),
        ({"user_id": None, "item_id": 1}, "request_invalid", "no field 'user_id'"),
        ({"user_id": 1, "item_id": 2, "page": 3}, "request_invalid", "the field 'page'"),
        ({"user_id": True, "item_id": 2}, "request_invalid", "got `bool`"),
        ({"user_id": 1, "item_id": 2, "position": 0}, "request_invalid", "position"),
        ({"user_id": "", "item_id": 2}, "id_invalid", "user_id"),
        ({"user_id": "a\x00", "item_id": 2}, "id_invalid", "user_id"),
        ({"user_id": 1, "item_id": 2, "event_id": "a\n"}, "id_invalid", "event_id"),
        ({"user_id": 1, "item_id": 2, "timestamp": "yesterday"}, "config_invalid", "'yesterday'"),
        ({"user_id": 1, "item_id": 2, "timestamp": "2025-11-24T16:00:00"}, "config_invalid", "zone"),
        ({"user_id": 1, "item_id": 2, "timestamp": [1]}, "config_invalid", "is a list"),
        ({"user_id": 1, "item_id": 2, "timestamp": 10**400}, "config_invalid", "between 1970 and now"),
        ({"user_id": 1, "item_id": 2, "timestamp": NOW * 1e3}, "config_invalid", "milliseconds"),
    ],
)  # fmt: skip
def test_what_holds_no_event_is_a_dead_letter(value, reason, words):
    given = message(value)
    with pytest.raises(DistilrecError) as found:
        reader().read(given)
    letter = dead_letter("kafka://b/t", given, found.value)
    assert letter.reason == reason
    assert words in letter.message and "how to fix" in letter.message
    assert letter.position == "t/0/7"
    kept = msgspec.json.decode(msgspec.json.encode(letter))
    assert ("base64" in kept) == (value == b"\xff\x00")
    assert ("value" in kept) == (value not in (None, b"\xff\x00"))


def test_other_fields_are_ignored_where_that_is_asked_for():
    event = reader(ignore_other_fields=True).read(message({"user_id": 1, "item_id": 2, "page": 3}))
    assert event.item_id == 2


def test_a_message_of_the_future_is_a_dead_letter():
    with pytest.raises(ConfigError, match="not a time between 1970 and now"):
        reader().read(message({"user_id": 1, "item_id": 2}, when=time.time() + 3_600))


def test_event_ids_of_places_are_short_and_differ():
    ids = {stable_id("kafka", "t" * 249, partition, 1, 2) for partition in range(3)}
    assert len(ids) == 3 and all(len(one) <= MAX_EVENT_ID for one in ids)
    assert stable_id("redis", "s\udcff", "1-1") == stable_id("redis", "s\udcff", "1-1")


def test_bytes_of_an_entry_are_kept_readable():
    given = message(parts={"user_id": "a\udcff"})
    letter = dead_letter("redis-stream://h/0/s", given, ConfigError("no"))
    assert msgspec.json.decode(letter.value) == {"user_id": "a\\xff"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"user_id": ""}, "name nothing"),
        ({"user_id": "item_id"}, "name 'item_id' twice"),
    ],
)
def test_fields_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        Fields(**options)


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["1e999", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
)
_ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=25)
@given(
    st.fixed_dictionaries(
        {"user_id": _ANYTHING | st.just("u"), "item_id": _ANYTHING | st.just("i")},
        optional={role: _ANYTHING for role in Fields.__struct_fields__[2:]},
    )
)
def test_whatever_a_message_holds_it_is_an_event_or_a_dead_letter(content):
    texts = {name: str(value) for name, value in content.items()}
    for given_message in (message(json.dumps(content).encode()), message(parts=texts)):
        try:
            event = reader().read(given_message)
        except DistilrecError as problem:
            letter = dead_letter("kafka://b/t", given_message, problem)
            assert msgspec.json.decode(msgspec.json.encode(letter), type=DeadLetter) == letter
        else:
            assert event.event_id and event.timestamp is not None


# --- the file of dead letters ---


def letter(name: str) -> DeadLetter:
    return DeadLetter(name, "kafka://b/t", "t/0/7", "request_invalid", "no", "x" * 100)


def test_each_dead_letter_is_there_once_whenever_the_process_is_killed(tmp_path):
    path = tmp_path / "dead.jsonl"
    for number in range(1, 6):
        path.unlink(missing_ok=True)
        DeadLetters(path).keep([letter("a")])
        with killed(tmp_path, number) as changes:
            DeadLetters(path).keep([letter("b"), letter("c")])
        DeadLetters(path).keep([letter("b"), letter("c")])
        lines = path.read_bytes().splitlines()
        assert [msgspec.json.decode(line)["id"] for line in lines] == ["a", "b", "c"]
        if len(changes) < number:
            break
    assert any(change.startswith("fsync /dead") for change in changes)
    assert path.stat().st_mode & 0o077 == 0


def test_lines_of_other_programs_stay(tmp_path):
    path = tmp_path / "dead.jsonl"
    path.write_bytes(b"hello\n\n[1]\n")
    assert DeadLetters(path).keep([letter("a")])
    assert path.read_bytes().startswith(b"hello\n\n[1]\n{")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be written: No such file"):
        DeadLetters(tmp_path / "nowhere" / "dead.jsonl")
