"""Stored events in the right order whatever the clocks did, and none of them counted twice beside the bundle's history."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import replace

import numpy as np
import pytest

from distilrec import load
from distilrec.bundle.format import erase_user, read_bundle, write_bundle
from distilrec.data.dataset import load_dataset
from distilrec.engine import stored as stored_module
from distilrec.engine.order import follows, placed
from distilrec.engine.stored import Clock, StoredRecommender
from distilrec.export.export import export_bundle
from distilrec.stores.records import Since, StoredEvent, UserRecord
from distilrec.stores.sqlite import SqliteStore
from distilrec.training.trained import load_model

HOUR, DAY = 3600.0, 86400.0
YEAR = 365 * DAY


def event(
    item: str, received: float, timestamp: float | None = None, user: str = "a"
) -> StoredEvent:
    when = received if timestamp is None else timestamp
    return StoredEvent(user, item, "view", when, received, f"{item}-{received}")


def order(events: list[StoredEvent]) -> list[str]:
    return [
        stored.event.item_id for stored in sorted(placed(events), key=lambda stored: stored.when)
    ]


@pytest.mark.parametrize(
    "received",
    [
        (1000.0, 1001.0, 1002.0, 1003.0),
        (1000.0, 1001.0, 500.0, 501.0),  # the clock was set back
        (1000.0, 1000.0 + YEAR, 1001.0, 1002.0),  # it was a year ahead once
        (1000.0 + YEAR, 1000.0, 1000.0 + YEAR, 1001.0),
        (1000.0, 0.0, 1001.0, 1002.0),  # it began in 1970 after a restart
    ],
)
def test_events_without_a_time_keep_their_order_of_arrival(received):
    events = [event(f"i{n}", when) for n, when in enumerate(received)]
    assert order(events) == ["i0", "i1", "i2", "i3"]


def test_an_event_from_a_clock_that_was_ahead_is_not_the_latest_for_ever():
    wrong = event("wrong", 1000.0 + YEAR)
    assert order([wrong, event("timed", 1010.0, timestamp=1009.0)]) == [
        "timed",
        "wrong",
    ]  # as late as can be
    assert order([wrong, event("next", 1010.0), event("timed", 1020.0, timestamp=1015.0)]) == [
        "wrong",
        "next",
        "timed",
    ]
    checked_by_it = event("sender", 1000.0 + YEAR, timestamp=999.0 + YEAR)
    assert order([checked_by_it, event("next", 1010.0), event("last", 2000.0)]) == [
        "next",
        "sender",
        "last",
    ]


def test_folding_one_by_one_is_folding_all(bundle, tmp_path):
    """Whatever clock and senders say: what was followed event by event is what a restart folds."""
    items = load(bundle).item_ids
    rng = np.random.default_rng(3)
    store = SqliteStore(tmp_path / "store.db")
    live = StoredRecommender(load(bundle), store)
    live.recommend("a")
    for n in range(60):
        received = 1e9 + float(rng.choice([0, 10, 20, 500, YEAR]))
        timestamp = None if rng.random() < 0.5 else min(received, 1e9 + float(rng.integers(30)))
        one = numbered(event(items[n % len(items)], received, timestamp), f"e{n}")
        (position,) = store.append([one])
        live.recommender.follow(one, position)
        answer = live.recommend("a", ["i1", "i2", "i3"])
        assert StoredRecommender(load(bundle), store).recommend("a", ["i1", "i2", "i3"]) == answer
    store.close()


def numbered(one: StoredEvent, event_id: str) -> StoredEvent:
    return StoredEvent(
        one.user_id, one.item_id, one.event_type, one.timestamp, one.received, event_id
    )


def test_new_events_that_come_together_are_sorted_too(bundle):
    """A shared store may answer with several new events, of which a later one is earlier in time."""
    one, other = load(bundle), load(bundle)
    items = one.item_ids[:4]
    events = [
        event(item, 1000.0 + n, timestamp=900.0 + when)
        for n, item, when in zip(range(4), items, (0, 3, 1, 2), strict=True)
    ]
    assert one.restore(Since("a"), UserRecord("x", 1, True, events[:1]))
    assert not one.restore(Since("a", "x", 1), UserRecord("x", 4, False, events[1:]))
    assert one.restore(Since("a"), UserRecord("x", 4, True, events))
    for number in (0, 2, 3, 1):
        other.update([{"user_id": "a", "item_id": items[number], "event_type": "view"}])
    assert one.recommend("a") == other.recommend("a")


def test_a_clock_follows_a_large_step_back_and_hides_a_small_one(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stored_module.time, "time", lambda: now[0])
    clock = Clock()
    assert clock.now() == 1000.0
    now[0] = 999.0
    assert clock.now() == 1000.0
    now[0] = 1000.0 + YEAR
    assert clock.now() == now[0]
    now[0] = 1001.0
    assert clock.now() == 1001.0


def test_follows():
    assert follows(event("i", 10.0), 9.0, 9.0)
    assert not follows(event("i", 8.0), 7.0, 9.0)
    assert not follows(event("i", 10.0, timestamp=5.0), 6.0, 9.0)


# Beside the bundle's history


@pytest.fixture(scope="module")
def trained(finished_run):
    dataset = load_dataset(finished_run.folder / "data")
    return load_model(finished_run.folder / "student", dataset), dataset


USER = 5
LOGS = {
    "seconds": lambda times: times,
    "dates": lambda times: np.floor(times / DAY) * DAY,
    "dates in Tokyo": lambda times: np.floor((times + 9 * HOUR) / DAY) * DAY,
    "dates in Los Angeles": lambda times: np.floor((times - 8 * HOUR) / DAY) * DAY,
    "local times of Tokyo": lambda times: times + 9 * HOUR,
    "local times of Los Angeles": lambda times: times - 8 * HOUR,
}


@pytest.fixture(params=list(LOGS))
def exported(request, trained, tmp_path):
    """A bundle whose log ended two days ago: user 5's last event is 90 minutes before the very last one."""
    student, dataset = trained
    export = np.floor(time.time() / DAY) * DAY - 2 * DAY + 15 * HOUR  # in the afternoon
    rows = np.arange(dataset.offsets[USER], dataset.offsets[USER + 1])
    times = np.full(len(dataset.times), export - 400 * DAY)
    times[dataset.offsets[USER + 2] - 1] = export
    times[rows] = export - 1.5 * HOUR - 1.0 * HOUR * np.arange(len(rows))[::-1]
    log = dataclasses.replace(dataset, times=LOGS[request.param](times))
    export_bundle(student, log, tmp_path / "bundle")
    return tmp_path / "bundle", dataset, rows, times


def test_events_of_the_log_count_once_and_others_count(exported, tmp_path):
    folder, dataset, rows, times = exported
    info = dataset.info
    user = info.user_ids[USER]
    known = [
        StoredEvent(
            user, info.item_ids[dataset.items[row]], info.event_types[dataset.events[row]], times[row], times[row],
            f"known-{row}",
        )
        for row in rows
    ]  # fmt: skip
    others = [item for item in info.item_ids if item not in {stored.item_id for stored in known}]
    end = times.max()
    lost = StoredEvent(
        user, others[0], "view", end - HOUR, end - HOUR, "lost"
    )  # acknowledged, not in the log
    later = StoredEvent(user, others[1], "buy", end + HOUR, end + HOUR, "later")
    much_later = StoredEvent(
        user, others[2], "view", end + 47 * HOUR, end + 47 * HOUR, "much later"
    )
    store = SqliteStore(tmp_path / "store.db")
    live = StoredRecommender(load(folder), store)
    live.recommend(user)
    expected = load(folder)
    expected.update(
        [
            {"user_id": user, "item_id": e.item_id, "event_type": e.event_type}
            for e in (lost, later, much_later)
        ]
    )
    for one in (*known, lost, later, much_later):
        (position,) = store.append([one])
        live.recommender.follow(one, position)
    answer = expected.recommend(user, k=50)
    assert {others[0], others[1], others[2]}.isdisjoint(item for item, _ in answer)
    assert live.recommend(user, k=50) == answer
    assert StoredRecommender(load(folder), store).recommend(user, k=50) == answer
    again = numbered(much_later, "again")
    store.append([again])
    expected.update([{"user_id": user, "item_id": again.item_id, "event_type": again.event_type}])
    assert StoredRecommender(load(folder), store).recommend(user, k=50) == expected.recommend(
        user, k=50
    )
    store.close()


def test_a_bundle_without_the_counts_is_still_read(exported, tmp_path):
    folder, dataset, rows, _ = exported
    read = read_bundle(folder)
    user, end = dataset.info.user_ids[USER], read.history.end
    recent = read.history.recent
    assert recent[USER] == len(rows) and recent.sum() == len(rows) + 1
    history = replace(read.history, recent=None)
    write_bundle(tmp_path / "old", read.manifest, read.weights, read.catalogue, history)
    store = SqliteStore(tmp_path / "store.db")
    store.append([event("i1", end - 1, user=user), event("i2", end + 1, user=user)])
    expected = load(folder)
    expected.update([{"user_id": user, "item_id": "i2", "event_type": "view"}])
    assert StoredRecommender(load(tmp_path / "old"), store).recommend(user) == expected.recommend(
        user
    )
    store.close()


def test_erasing_keeps_the_counts_of_the_others(exported):
    folder, dataset, rows, _ = exported
    assert erase_user(folder, dataset.info.user_ids[USER - 1])
    recent = read_bundle(folder).history.recent
    assert recent[USER - 1] == len(rows) and recent.sum() == len(rows) + 1
