"""Logs without order: how they are recognised, and how their held-out events are drawn."""

from __future__ import annotations

import pickle

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import load_dataset
from distilrec.data.order import drawn_numbers
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.data.splits import Split
from distilrec.errors import ConfigError
from distilrec.export.history import recent_events
from distilrec.networks.orders import Orders
from distilrec.runs.config import read_config
from tests import small_run

TIMED = Schema(timestamp="timestamp")


def log(users=20, events=8, seed=0, **columns):
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user}", f"i{item}")
        for user in range(users)
        for item in rng.choice(30, events, replace=False)
    ]
    made = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    return made.with_columns(**columns)


def held_out(data, part="test"):
    starts, stops = data.part_bounds(part)
    items, users = data.info.item_ids, data.info.user_ids
    return {
        (users[user], items[item] if item >= 0 else "unknown")
        for user in range(data.users)
        for item in data.items[starts[user] : stops[user]]
    }


def events_of(data):
    return {
        user: sorted(data.items[data.offsets[k] : data.offsets[k + 1]].tolist())
        for k, user in enumerate(data.info.user_ids)
    }


def at_one_time(made, share, users=20):
    """Times that are all equal for a share of the users, and rise for the others."""
    row = pl.int_range(pl.len())
    level = pl.col("user_id").is_in([f"u{n}" for n in range(round(share * users))])
    return made.with_columns(timestamp=1.5e9 + pl.when(level).then(0).otherwise(row))


@pytest.mark.parametrize(
    ("made", "schema", "order", "says"),
    [
        (log(), Schema(), "none", "the log has no column of times"),
        (at_one_time(log(), 1), TIMED, "none", "for 20 of 20 users with several events, all of"),
        (at_one_time(log(), 0.95), TIMED, "none", "for 19 of 20 users"),
        (at_one_time(log(), 0.9), TIMED, "time", None),
        (at_one_time(log(), 0), TIMED, "time", None),
    ],
)
def test_a_log_without_order_is_recognised(made, schema, order, says, tmp_path):
    data = prepare_dataset(made, schema)
    assert data.info.order == order
    found = [note for note in data.info.notes if "order" in note]
    assert (says is None) == (not found)
    if says is not None:
        assert says in found[0]
        assert "the held-out events are drawn at random" in data.info.notes[1]
    data.save(tmp_path)
    assert load_dataset(tmp_path).info == data.info


def test_users_with_one_event_say_nothing_of_the_order():
    lonely = pl.DataFrame({"user_id": [f"v{n}" for n in range(99)], "item_id": ["i1"] * 99})
    made = pl.concat([at_one_time(log(), 0), lonely.with_columns(timestamp=pl.lit(1.5e9))])
    assert prepare_dataset(made, TIMED).info.order == "time"
    assert prepare_dataset(made, TIMED, rows_per_part=40).info.order == "time"


def test_the_order_can_be_told():
    timed = at_one_time(log(), 0)
    by_rows = prepare_dataset(log(), Schema(), order="time")
    assert by_rows.info.notes == (
        "the log has no column of times: its rows are taken to be in the order of time",
    )
    by_time = prepare_dataset(timed, TIMED, order="time")
    auto = prepare_dataset(timed, TIMED)
    assert by_time.fingerprint() == auto.fingerprint()
    assert by_rows.items.tolist() == by_time.items.tolist()
    assert prepare_dataset(timed, TIMED, order="none").info.order == "none"


def test_a_log_with_order_has_the_fingerprint_that_it_had_before_there_were_others():
    data = prepare_dataset(at_one_time(log(), 0), TIMED)
    assert b'"order"' not in msgspec.json.encode(data.info)


@pytest.mark.parametrize("made", [log(), at_one_time(log(), 1)])
def test_the_drawn_order_does_not_depend_on_the_file(made):
    schema = TIMED if "timestamp" in made.columns else Schema()
    data = prepare_dataset(made, schema)
    shuffled = prepare_dataset(made.sample(fraction=1.0, shuffle=True, seed=1), schema)
    in_parts = prepare_dataset(made, schema, rows_per_part=30)
    for other in (shuffled, in_parts):
        assert held_out(other) == held_out(data)
        assert held_out(other, "validation") == held_out(data, "validation")
        assert (other.items == data.items).all()
    by_rows = prepare_dataset(made, schema, order="time")
    assert held_out(by_rows) != held_out(data)
    assert len(held_out(data)) == 20


def test_events_of_other_users_do_not_change_the_draw():
    made = log()
    fewer = made.filter(pl.col("user_id") != "u3")
    assert {pair for pair in held_out(prepare_dataset(made, Schema())) if pair[0] != "u3"} == (
        held_out(prepare_dataset(fewer, Schema()))
    )


def test_folds_hold_out_other_events():
    draws = [prepare_dataset(log(), Schema(), draw=draw) for draw in range(4)]
    assert all(events_of(draw).keys() == events_of(draws[0]).keys() for draw in draws)
    drawn = [held_out(draw, part) for draw in draws for part in ("test", "validation")]
    known = [{pair for pair in pairs if pair[1] != "unknown"} for pairs in drawn]
    assert len(set().union(*known)) == sum(map(len, known)) > 150
    # Eight events are four draws of two
    again = prepare_dataset(log(), Schema(), draw=4)
    assert held_out(again) == drawn[0]


def test_an_event_is_drawn_with_every_place_equally_often():
    made = log(users=3000, events=5)
    data = prepare_dataset(made, Schema())
    first = {user: item for user, item in reversed(list(zip(*made, strict=True)))}
    names = np.array([*data.info.item_ids, "unknown"])
    places = [
        names[data.items[data.offsets[k] : data.offsets[k + 1]]].tolist().index(first[user])
        for k, user in enumerate(data.info.user_ids)
    ]
    counts = np.bincount(places, minlength=5)
    assert ((counts - 600) ** 2 / 600).sum() < 18.5  # chi squared with 4 degrees, p = .001


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(
        st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=20, unique=True
    )
)
def test_drawn_numbers_depend_on_their_event_alone(ids):
    users, items = (pl.Series(list(column)) for column in zip(*ids, strict=True))
    whole = drawn_numbers(users, items, np.zeros(len(ids), np.int64))
    alone = drawn_numbers(users[-1:], items[-1:], np.zeros(1, np.int64))
    assert whole[-1] == alone[0]
    assert len(set(whole.tolist())) == len(ids)


def test_repetitions_are_drawn_apart():
    made = pl.DataFrame({"user_id": ["a"] * 40 + ["b"] * 3, "item_id": ["x"] * 20 + ["y"] * 23})

    data = prepare_dataset(made, Schema(), cleaning=Cleaning(drop_duplicates=False))
    items = data.items[data.offsets[0] : data.offsets[1]]
    assert sorted(items.tolist()) == [0] * 20 + [1] * 20
    assert np.count_nonzero(np.diff(items)) > 5


def test_a_split_in_time_needs_an_order(tmp_path):
    split = Split(kind="global-time")
    for made, schema in ((log(), Schema()), (at_one_time(log(), 1), TIMED)):
        with pytest.raises(ConfigError, match="no order of the events is known") as caught:
            prepare_dataset(made, schema, split=split)
        assert 'data.order = "time"' in caught.value.fix
    with pytest.raises(ConfigError, match="a global split needs times"):
        prepare_dataset(log(), Schema(), split=split, order="none")
    assert prepare_dataset(log(), Schema(), split=split, order="time").info.order == "time"


def test_times_that_are_no_order_still_split():
    """Training, validation and test are those of the times; trainings read sets of events."""
    split, made = Split(kind="global-time"), at_one_time(log(), 0)
    by_time = prepare_dataset(made, TIMED, split=split)
    sets = prepare_dataset(made, TIMED, split=split, order="none")
    assert sets.info.order == "none" and by_time.info.order == "time"
    assert any("models are trained on sets of events" in note for note in sets.info.notes)
    assert not any("drawn at random" in note for note in sets.info.notes)
    np.testing.assert_array_equal(sets.times, by_time.times)
    np.testing.assert_array_equal(sets.train_end, by_time.train_end)
    np.testing.assert_array_equal(sets.validation_end, by_time.validation_end)
    assert sets.why_no_times == "no order of a user's events is known"
    rows = [Orders(0).of_epoch(sets, epoch).keys for epoch in (1, 2)]
    later = np.flatnonzero(~sets.is_training())
    for shuffled in rows:
        assert np.any(np.diff(sets.times[shuffled][: sets.train_end[0]]) < 0)
        np.testing.assert_array_equal(shuffled[later], later)
    assert np.any(rows[0] != rows[1])


def test_the_order_of_ties_does_not_depend_on_the_file_where_times_are_no_order():
    hours = 1.5e9 + 3600.0 * (pl.int_range(pl.len()) % 4)
    split, made = Split(kind="global-time"), log().with_columns(timestamp=hours)
    one, other = (
        prepare_dataset(
            made.sample(fraction=1, shuffle=True, seed=seed), TIMED, split=split, order="none"
        )
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(one.items, other.items)
    third = prepare_dataset(made, TIMED, split=split, order="none", draw=1)
    np.testing.assert_array_equal(one.times, third.times)
    assert np.any(one.items != third.items)


def test_a_fold_needs_a_log_without_order():
    with pytest.raises(ConfigError, match="data.draw is 2, but the events have an order"):
        prepare_dataset(at_one_time(log(), 0), TIMED, draw=2)
    with pytest.raises(ConfigError, match="data.draw is 2"):
        prepare_dataset(log(), Schema(), order="time", draw=2)
    with pytest.raises(ConfigError, match="data.draw is -1"):
        prepare_dataset(log(), Schema(), draw=-1)
    with pytest.raises(ConfigError, match="data.order is 'rows'"):
        prepare_dataset(log(), Schema(), order="rows")


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('order = "time"\nties = "rows"\ndraw = 1', "data.draw is 1"),
        ('order = "rows"', "data.order is 'rows'"),
        ("draw = -1", "draw"),
    ],
)
def test_contradictions_in_a_configuration_are_errors(toml, says, tmp_path):
    (tmp_path / "my.toml").write_text(f'[data]\ninteractions = "log.csv"\n{toml}\n')
    with pytest.raises(ConfigError, match=says):
        read_config(tmp_path / "my.toml")


def test_recent_events_reach_to_the_end_of_a_drawn_order():
    timed = prepare_dataset(at_one_time(log(), 0), TIMED)
    last = timed.times[timed.offsets[1:] - 1]
    assert (recent_events(timed, float(last.max()) - 3.5)[last.argmax()]) == 4
    drawn = prepare_dataset(at_one_time(log(), 0), TIMED, order="none")
    times = drawn.times[drawn.offsets[5] : drawn.offsets[6]]
    since = float(np.sort(times)[-3])
    late = np.flatnonzero(times > since)
    assert recent_events(drawn, since)[5] == len(times) - late[0]


def test_another_process_has_the_same_data_set():
    """A worker that got the data set pickled knows the models that were trained on it here."""
    here = small_run.dataset()
    assert here.info.order == "time"
    assert pickle.loads(pickle.dumps(here)).fingerprint() == here.fingerprint()
