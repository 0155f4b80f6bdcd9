from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.data import cleaning as module
from distilrec.data.cleaning import Cleaning
from distilrec.data.readers import Log
from distilrec.data.schema import Schema
from distilrec.data.source import Source, Table
from distilrec.errors import ColumnMissingError, ColumnTypeError, NotEnoughDataError

SCHEMA = Schema(timestamp="timestamp", weight="rating")


def log(*rows):
    return pl.DataFrame(
        list(rows), schema=["user_id", "item_id", "timestamp", "rating"], orient="row", strict=False
    )


def clean_log(table, schema, cleaning, source="the log", rows_per_part=5):
    """The clean log as one table, and the report; cleaned in small parts."""
    with TemporaryDirectory() as scratch:
        clean = module.clean_log(
            Log(source, table.height, table),
            Source(Table(table), schema),
            cleaning,
            Path(scratch),
            None,
            rows_per_part,
        )
        assert clean.rows == tuple(clean.part(number).height for number in range(len(clean.parts)))
        users = [set(clean.part(number)["user_id"]) for number in range(len(clean.parts))]
        assert sum(map(len, users)) == len(set().union(*users))
        return pl.concat([clean.part(number) for number in range(len(clean.parts))]), clean.report


GOOD = [("a", "x", 100, 5.0), ("a", "y", 200, 4.0), ("b", "x", 300, 3.0), ("b", "z", 250, 1.0)]


def test_every_reason_is_counted():
    dirty = log(
        *GOOD,
        GOOD[0],  # duplicate
        (None, "x", 1, 1.0),
        ("a", None, 1, 1.0),
        ("a", "q", None, 1.0),
        ("a", "q", -5, 1.0),
        ("a", "q", 99_999_999_999, 1.0),
        ("a", "q", 5, math.nan),
        ("a", "q", 5, 9.0),
        ("a", "q", 5, 0.0),
    )
    clean, report = clean_log(dirty, SCHEMA, Cleaning(min_weight=1, max_weight=5))
    assert report.dropped == {
        "no user id": 1,
        "no item id": 1,
        "no timestamp": 1,
        "weight missing or not a number": 1,
        "time out of range": 2,
        "weight below min_weight": 1,
        "weight above max_weight": 1,
        "duplicate row": 1,
        "user with more than 2,000 events on one day": 0,
    }
    assert (report.rows_in, report.rows_out) == (13, 4)
    assert clean.select("user_id", "item_id").rows() == [
        ("a", "x"),
        ("a", "y"),
        ("b", "z"),
        ("b", "x"),
    ]


def test_bots_go_as_a_whole():
    bot = [("bot", f"i{n}", 1_000 + n, 1.0) for n in range(50)]
    clean, report = clean_log(log(*GOOD, *bot), SCHEMA, Cleaning(bot_events_per_day=49))
    assert report.dropped["user with more than 49 events on one day"] == 50
    assert set(clean["user_id"]) == {"a", "b"}


def test_k_core_is_repeated_until_stable():
    rows = [
        ("a", "x", 1, 1.0),
        ("a", "y", 2, 1.0),
        ("b", "x", 3, 1.0),
        ("b", "y", 4, 1.0),
        ("c", "y", 5, 1.0),
        ("c", "z", 6, 1.0),
    ]
    clean, report = clean_log(log(*rows), SCHEMA, Cleaning(min_user_events=2, min_item_events=2))
    assert set(clean["user_id"]) == {"a", "b"}  # z goes first, which leaves c with one event
    assert report.dropped["user or item with too few events"] == 2


def test_times_in_all_their_forms():
    seconds = [1_700_000_000, 1_700_000_060]
    base = {"user_id": ["a", "b"], "item_id": ["x", "y"], "rating": [1, 1]}
    datetimes = pl.from_epoch(pl.Series(seconds), "s")
    forms = [
        seconds,
        [second * 1_000 for second in seconds],
        [second * 1_000_000 for second in seconds],
        [str(second) for second in seconds],
        datetimes,
        datetimes.dt.strftime("%Y-%m-%d %H:%M:%S"),
        datetimes.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    ]
    for form in forms:
        clean, _ = clean_log(pl.DataFrame({**base, "timestamp": form}), SCHEMA, Cleaning())
        assert clean["timestamp"].to_list() == seconds, form


def test_whole_floats_are_ids_and_fractions_are_not():
    table = pl.DataFrame(
        {"user_id": [1.0, 2.0], "item_id": [7, 8], "timestamp": [1, 2], "rating": [1, 1]}
    )
    clean, _ = clean_log(table, SCHEMA, Cleaning())
    assert clean["user_id"].to_list() == ["1", "2"]
    with pytest.raises(ColumnTypeError, match="column 'user_id' holds fractions"):
        clean_log(table.with_columns(user_id=pl.Series([1.5, 2.0])), SCHEMA, Cleaning())


def test_errors_name_the_column_and_the_row():
    with pytest.raises(
        ColumnMissingError, match=r"ratings has no column 'timestamp'; it has: user_id, item_id"
    ) as caught:
        clean_log(pl.DataFrame({"user_id": ["a"], "item_id": ["x"]}), SCHEMA, Cleaning(), "ratings")
    assert caught.value.fix == "name the right column: timestamp in [data.schema]"
    table = pl.DataFrame(
        {
            "user_id": ["a", "b"],
            "item_id": ["x", "y"],
            "timestamp": ["1", "soon"],
            "rating": ["1", "2"],
        }
    )
    with pytest.raises(ColumnTypeError, match="row 2: column 'timestamp' holds 'soon'") as caught:
        clean_log(table, SCHEMA, Cleaning())
    assert caught.value.context == {"file": "the log", "column": "timestamp", "row": 2}
    with pytest.raises(
        ColumnTypeError, match="row 1: column 'timestamp' holds 'yesterday', which is not a time"
    ):
        clean_log(
            table.with_columns(timestamp=pl.Series(["yesterday", "today"])), SCHEMA, Cleaning()
        )


def test_an_error_in_a_later_slice_names_the_row_of_the_file():
    rows = [[f"u{n % 3}", f"i{n}", str(n), "1"] for n in range(20)]
    rows[12][3] = "much"
    rows[17][2] = "soon"
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    with pytest.raises(ColumnTypeError, match="row 13: column 'rating' holds 'much'") as caught:
        clean_log(table, SCHEMA, Cleaning())
    assert caught.value.context["row"] == 13
    with pytest.raises(ColumnTypeError, match="row 18: column 'timestamp' holds 'soon'"):
        clean_log(table, Schema(timestamp="timestamp"), Cleaning())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([("a", "x", 1, 1.0), ("a", "y", 2, 1.0)], "1 user left"),
        ([("a", "x", 1, 1.0), ("b", "x", 2, 1.0)], "1 item left"),
        (
            [("a", "x", -1, 1.0), ("b", "y", -1, 1.0)],
            "0 interactions left after cleaning .*2 dropped: time out of range",
        ),
    ],
)
def test_too_little_data(rows, message):
    table = (
        log(*rows)
        if rows
        else pl.DataFrame(
            schema={n: pl.String for n in ("user_id", "item_id", "timestamp", "rating")}
        )
    )
    with pytest.raises(NotEnoughDataError, match=message):
        clean_log(table, SCHEMA, Cleaning())


row = st.tuples(
    st.sampled_from(["a", "b", "c", "", None]),
    st.sampled_from(["x", "y", "z", None]),
    st.one_of(st.none(), st.integers(-10, 2_000)),
    st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32)),
)


@pytest.mark.slow
@settings(deadline=None)
@given(rows=st.lists(row, max_size=40))
def test_nothing_disappears_uncounted(rows):
    clean, report = clean_log(log(*GOOD, *rows), SCHEMA, Cleaning(min_user_events=1))
    assert report.rows_in == len(rows) + len(GOOD)
    assert report.rows_in - sum(report.dropped.values()) == report.rows_out == clean.height
    assert clean["timestamp"].is_finite().all()
    assert clean.equals(clean.sort("user_id", "timestamp", maintain_order=True))
