"""Ids in logs and tables: one rule, and every row that breaks it is counted."""

from __future__ import annotations

import uuid

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.cli import main
from distilrec.data.checks import DataCheck
from distilrec.data.columns import as_ids
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Feature, Schema
from distilrec.errors import ColumnTypeError, InvalidIdError
from distilrec.ids import as_id

SCHEMA = Schema(timestamp="timestamp", item_key="sku", title="name")
START = 1_700_000_000


def log(users=4, items=4, **columns):
    count = users * items
    table = {
        "user_id": [u + 1 for u in range(users) for _ in range(items)],
        "item_id": [(u + i) % items + 1 for u in range(users) for i in range(items)],
        "timestamp": [START + n for n in range(count)],
    }
    return pl.DataFrame({**table, **columns}, strict=False)


def titles(data):
    return dict(zip(data.info.item_ids, data.info.titles, strict=True))


values = st.one_of(
    st.text(max_size=8),
    st.text(st.sampled_from("01.0-7 \t\n\u2028\ufffd\u00a0e"), max_size=10),
    st.sampled_from(
        [
            "1.0",
            "-0.0",
            "007",
            "1.50",
            "9007199254740992.0",
            "9007199254740991.0",
            "1" * 257,
            "1e19",
            " 7.0 ",
        ]
    ),
)


def by_rule(value):
    try:
        return as_id(value)
    except InvalidIdError:
        return None


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=30))
def test_a_column_follows_the_rule_for_single_ids(texts):
    found = as_ids(pl.Series("id", texts, dtype=pl.String), "the log")
    assert found.values.to_list() == [by_rule(text) for text in texts]
    for text, value, problem in zip(
        texts, found.values.to_list(), found.problems.to_list(), strict=True
    ):
        assert value is None or problem is None
        if value is None and problem is None:
            assert not text.strip(" \u00a0")  # nothing there


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.integers(-(2**62), 2**62).map(float), st.just(float("inf"))),
        min_size=1,
    )
)
def test_a_column_of_floats_follows_the_rule(numbers):
    found = as_ids(pl.Series("id", numbers, dtype=pl.Float64), "the log")
    assert found.values.to_list() == [by_rule(number) for number in numbers]


def test_floats_of_32_bits_are_exact_up_to_2_to_the_24():
    found = as_ids(pl.Series("id", [2.0**24 - 1, 2.0**24], dtype=pl.Float32), "the log")
    assert found.values.to_list() == ["16777215", None]


@pytest.mark.parametrize(
    "of_log", ["integers", "floats", "text", "float text", "decimals", "categories"]
)
@pytest.mark.parametrize("of_table", ["floats", "text", "float text", "nullable"])
def test_log_and_table_agree_on_whole_numbers(of_log, of_table, tmp_path):
    made = log()
    forms = {
        "integers": pl.col("item_id"),
        "floats": pl.col("item_id").cast(pl.Float64),
        "text": pl.col("item_id").cast(pl.String),
        "float text": pl.format("{}.0", "item_id"),
        "decimals": pl.col("item_id").cast(pl.Decimal(12, 2)),
        "categories": pl.col("item_id").cast(pl.String).cast(pl.Categorical),
    }
    made.with_columns(item_id=forms[of_log]).write_parquet(tmp_path / "log.parquet")
    table = {
        "floats": [1.0, 2.0],
        "text": ["1", "2"],
        "float text": ["1.0", " 2.00"],
        "nullable": [1.0, 2.0, None],
    }[of_table]
    items = pl.DataFrame({"sku": table, "name": ["One", "Two", "None"][: len(table)]})
    data = prepare_dataset(tmp_path / "log.parquet", SCHEMA, items=items)
    assert titles(data) == {"1": "One", "2": "Two", "3": "3", "4": "4"}
    floats = [
        note
        for note in (*data.info.cleaning_report.notes, *data.info.notes)
        if "written as floats" in note
    ]
    assert len(floats) == (of_log in ("floats", "float text")) + (of_table != "text")


def test_large_floats_are_refused_and_counted_not_merged(tmp_path):
    lines = [
        f'{{"user_id": {u}, "item_id": {i}, "timestamp": {START + u * 10 + i}}}'
        for u in range(3)
        for i in range(3)
    ]
    large = [
        f'{{"user_id": 1, "item_id": {x}, "timestamp": {START}}}'
        for x in ("9007199254740992.0", "9007199254740994.0", "1e19")
    ]
    exact = [
        f'{{"user_id": {u}, "item_id": 9007199254740993, "timestamp": {START + 99}}}'
        for u in range(2)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, *large, *exact]) + "\n")
    data = prepare_dataset(tmp_path / "log.jsonl", Schema(timestamp="timestamp"))
    dropped = data.info.cleaning_report.dropped
    assert dropped["item id that is a float so large that several integers are the same"] == 3
    assert "9007199254740993" not in data.info.item_ids  # only in held-out rows
    assert data.info.cleaning_report.rows_out == 11
    csv = log().with_columns(
        item_id=pl.when(pl.col("item_id") == 2)
        .then(pl.lit("9007199254740994.0"))
        .otherwise("item_id")
    )
    csv.write_csv(tmp_path / "log.csv")
    data = prepare_dataset(tmp_path / "log.csv", Schema(timestamp="timestamp"))
    assert data.info.cleaning_report.rows_out == 12


def test_rows_with_ids_that_break_the_rule_are_dropped_and_counted():
    made = log().cast({"user_id": pl.String, "item_id": pl.String})
    bad = pl.DataFrame(
        {
            "user_id": ["1", "1\n", "1", "\ufffd", "x" * 257, "", " 1 "],
            "item_id": ["i" * 257, "1", "2\u2028", "1", "1", "1", "1"],
            "timestamp": [START + 50 + n for n in range(7)],
        }
    )
    report = prepare_dataset(
        pl.concat([made, bad]), Schema(timestamp="timestamp"), rows_per_part=4
    ).info.cleaning_report
    assert {reason: count for reason, count in report.dropped.items() if count} == {
        "user id that holds characters that no id may have": 2,
        "user id that has more than 256 characters": 1,
        "no user id": 1,
        "item id that has more than 256 characters": 1,
        "item id that holds characters that no id may have": 1,
    }
    assert report.rows_out == 17
    items = pl.DataFrame({"sku": ["1", "2\n", "1", "3" * 300, None], "name": list("abcde")})
    data = prepare_dataset(made, SCHEMA, items=items)
    assert titles(data)["1"] == "a"
    assert any("1 rows with an id that holds characters" in note for note in data.info.notes)
    assert any("1 rows with an id that has more than 256" in note for note in data.info.notes)
    assert any(
        "2 rows without an id or with the id of an earlier row" in note for note in data.info.notes
    )


def test_uuids_of_parquet(tmp_path):
    ids = [uuid.UUID(int=0xF00D << 100 | n) for n in range(4)]
    made = log().with_columns(user_id=pl.Series([ids[u - 1].bytes for u in log()["user_id"]]))
    made.write_parquet(tmp_path / "log.parquet")
    data = prepare_dataset(tmp_path / "log.parquet", Schema(timestamp="timestamp"), rows_per_part=5)
    assert sorted(data.info.user_ids) == sorted(map(str, ids))
    # Text as bytes is text, also where it has 16 characters; bytes that are no text are refused.
    made = made.with_columns(
        user_id=pl.Series([f"user-{u:011d}".encode() for u in log()["user_id"]])
    )
    assert "user-00000000001" in prepare_dataset(made, Schema(timestamp="timestamp")).info.user_ids
    made = made.with_columns(
        user_id=pl.Series([b"\xff\xfe" if n == 3 else b"u%d" % (n // 4) for n in range(16)])
    )
    made.write_parquet(tmp_path / "bytes.parquet")
    report = prepare_dataset(
        tmp_path / "bytes.parquet", Schema(timestamp="timestamp")
    ).info.cleaning_report
    assert report.dropped["user id that holds characters that no id may have"] == 1


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pl.lit(True), "holds Boolean values"),
        (pl.lit(0.5), "holds fractions"),
        (pl.lit("0.50").cast(pl.Decimal(4, 2)), "holds fractions"),
        (pl.from_epoch("timestamp"), "holds dates"),
        (pl.concat_list("timestamp"), "holds lists or objects"),
    ],
)
def test_columns_that_hold_no_ids_are_refused(column, says):
    with pytest.raises(ColumnTypeError, match=f"column 'item_id' {says}, which cannot be ids"):
        prepare_dataset(log().with_columns(item_id=column), Schema(timestamp="timestamp"))


# Event types.


@pytest.mark.parametrize("missing", ["", " ", None, "unknown"])
def test_an_event_without_a_type_is_of_the_unknown_type(missing, tmp_path):
    types = ["view", "buy"] * 8
    types[5] = missing
    made = log(event=types)
    made.write_csv(tmp_path / "log.csv")
    schema = Schema(timestamp="timestamp", event_type="event")
    for source in (made, tmp_path / "log.csv"):
        data = prepare_dataset(source, schema)
        assert data.info.event_types == ("unknown", "buy", "view")
        counted = (
            "1 rows have no event type: it is read as unknown" in data.info.cleaning_report.notes
        )
        assert counted == (missing != "unknown")


@pytest.mark.parametrize(
    ("types", "names"),
    [
        ([1.0, 2.0] * 8, ("1", "2")),
        ([0.5, 2.0] * 8, ("0.5", "2")),
        ([True, False] * 8, ("false", "true")),
        (["7.0", "7"] * 8, ("7",)),
    ],
)
def test_event_types_of_other_types(types, names):
    data = prepare_dataset(log(event=types), Schema(timestamp="timestamp", event_type="event"))
    assert data.info.event_types == ("unknown", *names)


# Declared checks.


@pytest.mark.slow
def test_checks_leave_out_what_is_no_number_before_it_is_read(tmp_path):
    made = log(rating=["5", "n/a", "4", "3"] * 4).cast({"timestamp": pl.String})
    made = made.with_columns(
        timestamp=pl.when(pl.int_range(pl.len()) == 6).then(pl.lit("never")).otherwise("timestamp")
    )
    made.write_csv(tmp_path / "log.csv")
    checks = (DataCheck("rating", minimum=1), DataCheck("timestamp", pattern="[0-9]+"))
    schema = Schema(timestamp="timestamp", weight="rating")
    report = prepare_dataset(
        tmp_path / "log.csv", schema, checks=checks, rows_per_part=3
    ).info.cleaning_report
    assert report.dropped["check that rating is at least 1"] == 4
    assert report.dropped["check that timestamp matches [0-9]+"] == 1
    assert report.rows_out == 11
    with pytest.raises(ColumnTypeError, match="row 2: column 'rating' holds 'n/a'"):
        prepare_dataset(tmp_path / "log.csv", schema, checks=checks[1:])
    made = made.with_columns(
        rating=pl.when(pl.int_range(pl.len()) == 10).then(pl.lit("4,5")).otherwise("rating")
    )
    with pytest.raises(ColumnTypeError, match="row 11: column 'rating' holds '4,5'") as caught:
        prepare_dataset(
            made, schema, checks=(DataCheck("rating", pattern="[^n].*"), checks[1]), rows_per_part=4
        )
    assert caught.value.context["row"] == 11
    items = pl.DataFrame({"sku": [1, 2, 3], "name": list("abc"), "price": ["n/a", "2", "x"]})
    schema = Schema(
        timestamp="timestamp",
        item_key="sku",
        title="name",
        item_features=(Feature("price", "numeric"),),
    )
    with pytest.raises(ColumnTypeError, match="row 3: column 'price' holds 'x'"):
        prepare_dataset(
            log(), schema, items=items, checks=(DataCheck("price", "items", pattern="[^n].*"),)
        )
    data = prepare_dataset(
        log(), schema, items=items, checks=(DataCheck("price", "items", minimum=0),)
    )
    assert any(
        "2 rows left out by the check that price is at least 0" in note for note in data.info.notes
    )


def test_whole_floats_are_among_the_allowed_texts():
    made = log(stars=[1.0, 2.0, 3.0, 2.5] * 4)
    checks = (DataCheck("stars", allowed=("1", "2", "2.5")),)
    report = prepare_dataset(
        made, Schema(timestamp="timestamp"), checks=checks
    ).info.cleaning_report
    assert report.dropped["check that stars is one of 1, 2, 2.5"] == 4


def test_the_report_of_the_command_line_counts_them(tmp_path, capsys):
    log().with_columns(pl.col("user_id").cast(pl.Float64)).write_csv(tmp_path / "log.csv")
    (tmp_path / "run.toml").write_text(
        '[data]\ninteractions = "log.csv"\n[data.schema]\ntimestamp = "timestamp"\n'
    )
    main(["prepare", "--config", str(tmp_path / "run.toml"), "--run", str(tmp_path / "run")])
    assert "16 user ids are whole numbers written as floats" in capsys.readouterr().err
