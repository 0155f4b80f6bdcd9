"""Events of a user at the same time: in the order of the rows, or in a drawn one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec import runs
from distilrec.data.cleaning import Cleaning
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.errors import ConfigError
from distilrec.runs.config import DataConfig, RunConfig, read_config
from distilrec.runs.folder import choices_of
from tests.small_run import Said

SCHEMA = Schema(timestamp="timestamp", event_type="kind")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 5),
        st.sampled_from([0.0, 60.0, 60.5, 3600.0]),
        st.sampled_from(["view", "buy"]),
    ),
    min_size=8,
    max_size=40,
)


def log(events):
    rows = [
        *(("y", f"i{place}", 1.5e9 + place, "view") for place in range(4)),
        *(("z", f"i{3 - place}", 1.5e9 + place, "buy") for place in range(4)),
        *((user, f"i{item}", 1.5e9 + when, kind) for user, item, when, kind in events),
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "kind"], orient="row")


def prepared(made, **choices):
    return prepare_dataset(
        made, SCHEMA, cleaning=Cleaning(drop_duplicates=False), order="time", **choices
    )


def rows_of(data):
    """Return the events of each user in order: time, item and type."""
    items = [*data.info.item_ids, "unknown"]
    return {
        user: [
            (data.times[row], items[data.items[row]], int(data.events[row]))
            for row in range(data.offsets[place], data.offsets[place + 1])
        ]
        for place, user in enumerate(data.info.user_ids)
    }


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, draw=st.integers(0, 3))
def test_only_events_at_the_same_time_change_places(events, draw):
    # With an item table, no item of a held-out event is unknown
    items = pl.DataFrame({"sku": [f"i{number}" for number in range(6)]})
    schema = Schema(timestamp="timestamp", event_type="kind", item_key="sku")
    common = {"cleaning": Cleaning(drop_duplicates=False), "order": "time", "items": items}
    plain = prepare_dataset(log(events), schema, **common)
    drawn = prepare_dataset(log(events), schema, **common, ties="shuffled", draw=draw)
    before = rows_of(plain)
    for user, rows in rows_of(drawn).items():
        assert [row[0] for row in rows] == [row[0] for row in before[user]]
        # A type that only held-out rows have is unknown
        assert sorted(row[:2] for row in rows) == sorted(row[:2] for row in before[user])
    assert (drawn.train_end - drawn.offsets[:-1] == plain.train_end - plain.offsets[:-1]).all()


@settings(max_examples=25, deadline=None)
@given(events=EVENTS, draw=st.integers(0, 3), seed=st.integers(0, 99))
def test_the_drawn_order_follows_from_the_events_alone(events, draw, seed):
    made = log(events)
    drawn = prepared(made, ties="shuffled", draw=draw)
    again = prepared(made.sample(fraction=1.0, shuffle=True, seed=seed), ties="shuffled", draw=draw)
    in_parts = prepared(made, ties="shuffled", draw=draw, rows_per_part=9)
    assert again.fingerprint() == drawn.fingerprint() == in_parts.fingerprint()


@settings(max_examples=25, deadline=None)
@given(events=EVENTS)
def test_rows_are_what_they_were(events):
    made = log(events)
    plain = prepared(made, ties="rows")
    in_order = made.with_row_index("row").sort("user_id", "timestamp", "row")
    for user, rows in rows_of(plain).items():
        own = in_order.filter(pl.col("user_id") == user)
        assert [when for when, _, _ in rows] == own["timestamp"].to_list()
        known = [item for _, item, _ in rows]
        wanted = own["item_id"].to_list()
        assert all(item in ("unknown", other) for item, other in zip(known, wanted, strict=True))


def many_ties(users=2000):
    rows = [
        (f"u{user}", f"i{(7 * user + place) % 50}", 1.5e9)
        for user in range(users)
        for place in range(4)
    ]
    last = [(f"u{user}", f"i{user % 50}", 2e9 - 1e8 * (user % 2)) for user in range(users)]
    made = pl.DataFrame(rows + last, schema=["user_id", "item_id", "timestamp"], orient="row")
    return made.with_columns(timestamp=pl.col("timestamp") - 4e8)


def test_every_order_of_ties_is_drawn_equally_often():
    made, timed = many_ties(), Schema(timestamp="timestamp")
    cleaning = Cleaning(drop_duplicates=False)
    places = []
    for draw in (0, 1):
        data = prepare_dataset(made, timed, cleaning=cleaning, ties="shuffled", draw=draw)
        names = np.array([*data.info.item_ids, "unknown"])
        first = {f"u{user}": f"i{7 * user % 50}" for user in range(2000)}
        places.append(
            np.array(
                [
                    names[data.items[data.offsets[k] : data.offsets[k] + 4]]
                    .tolist()
                    .index(first[user])
                    for k, user in enumerate(data.info.user_ids)
                ]
            )
        )
    for drawn in places:
        counts = np.bincount(drawn, minlength=4)
        assert ((counts - 500) ** 2 / 500).sum() < 16.3  # chi squared with 3 degrees, p = .001
    # Two draws agree as often as two independent ones
    assert abs((places[0] == places[1]).mean() - 0.25) < 0.035


def test_the_note_counts_the_ties():
    data = prepare_dataset(many_ties(20), Schema(timestamp="timestamp"), ties="shuffled", draw=2)
    assert data.info.notes[0] == (
        "80 of 100 events share their time with another one of the same user: their order is drawn "
        '(data.ties is "shuffled", draw 2)'
    )
    unordered = prepare_dataset(many_ties(20), Schema(timestamp="timestamp"), ties="unordered")
    assert unordered.info.notes[0].endswith(
        '(data.ties is "unordered", draw 0), and is another one in each epoch'
    )
    in_rows = prepare_dataset(many_ties(20), Schema(timestamp="timestamp"), ties="rows")
    assert not any("ties" in note for note in in_rows.info.notes)


def test_baskets_are_recognised():
    """At least half of the events have the time of the one before, and users choose items again."""
    made, timed = many_ties(20), Schema(timestamp="timestamp")
    baskets = prepare_dataset(made, timed)
    assert baskets.info.order == "ties"
    assert baskets.info.notes[0] == (
        "80 of 100 events share their time with another one of the same user: their order is drawn "
        '(data.ties is "auto", and users choose items again, draw 0), and is another one in each '
        "epoch"
    )
    chosen = prepare_dataset(made, timed, ties="unordered")
    np.testing.assert_array_equal(baskets.items, chosen.items)
    once = made.unique(["user_id", "item_id"])
    assert prepare_dataset(once, timed).info.order == "time"
    spread = made.with_columns(pl.col("timestamp") + pl.int_range(pl.len()).over("user_id") // 2)
    assert prepare_dataset(spread, timed).info.order == "time"
    rows = pl.int_range(pl.len())
    assert prepare_dataset(made.with_columns(timestamp=rows), timed).info.order == "time"


def test_ties_need_times_and_an_order():
    untimed = log([]).drop("timestamp")
    with pytest.raises(ConfigError, match="the log has no column of times: no events share one"):
        prepare_dataset(untimed, Schema(), order="time", ties="shuffled")
    with pytest.raises(ConfigError, match="no order of the events is known: that of all of them"):
        prepare_dataset(untimed, Schema(), ties="unordered")
    with pytest.raises(ConfigError, match="data.ties is 'random'"):
        prepare_dataset(untimed, Schema(), ties="random")
    with pytest.raises(ConfigError, match="data.draw is 1, but the events have an order") as caught:
        prepared(log([]), draw=1)
    assert 'data.ties = "shuffled"' in caught.value.fix


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('ties = "random"', "ties"),
        ('order = "none"\nties = "shuffled"', "no order of the events is known"),
        ('order = "none"\nties = "unordered"', 'data.ties is "unordered", but no order'),
        ('order = "time"\ndraw = 1\nties = "rows"', "data.draw is 1"),
    ],
)
def test_contradictions_in_a_configuration_are_errors(toml, says, tmp_path):
    (tmp_path / "my.toml").write_text(f'[data]\ninteractions = "log.csv"\n{toml}\n')
    with pytest.raises(ConfigError, match=says):
        read_config(tmp_path / "my.toml")


def test_a_run_is_prepared_with_shuffled_ties_and_says_so(tmp_path):
    log([]).write_csv(tmp_path / "log.csv")
    (tmp_path / "my.toml").write_text(
        '[data]\ninteractions = "log.csv"\nties = "shuffled"\ndraw = 1\n'
        '[data.schema]\ntimestamp = "timestamp"\n'
    )
    config = read_config(tmp_path / "my.toml")
    run, dataset = runs.prepare(config, tmp_path / "run")
    assert 'data.ties is "shuffled", draw 1' in " ".join(dataset.info.notes)
    assert runs.open_data(run).info.notes == dataset.info.notes


def test_data_that_were_prepared_before_there_was_a_choice_are_still_opened():
    config = RunConfig(DataConfig(interactions="log.csv"))
    assert choices_of(config) == "57310b09f0821fed3facbe70728644c95a020a5b977a0615b21e19028168ef5b"


@pytest.mark.parametrize(
    ("ties", "speaks"), [("auto", True), ("rows", False), ("unordered", False)]
)
def test_a_run_speaks_of_many_ties_whose_order_is_that_of_the_rows(ties, speaks, tmp_path):
    many_ties(20).unique(["user_id", "item_id"], maintain_order=True).write_csv(
        tmp_path / "log.csv"
    )
    timed = DataConfig(
        interactions=str(tmp_path / "log.csv"), schema=Schema(timestamp="timestamp"), ties=ties
    )
    said = Said()
    _, dataset = runs.prepare(RunConfig(timed), tmp_path / "run", said)
    assert dataset.info.order == ("ties" if ties == "unordered" else "time")
    assert any('ties = "unordered" in [data]' in line for line in said.lines) == speaks
