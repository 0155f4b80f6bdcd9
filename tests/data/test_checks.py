"""Declared checks of the tables, and users that are left out."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.cli import main
from distilrec.data.checks import DataCheck, check_table
from distilrec.data.preparation import prepare_dataset
from distilrec.data.pseudonyms import pseudonym
from distilrec.data.schema import Schema
from distilrec.errors import CheckFailedError, ColumnMissingError, ConfigError
from distilrec.runs.config import read_config
from tests.small_run import SCHEMA, tables, write_tables

CHECKS = {
    "rating is required": (DataCheck("rating", required=True), [0, 1, 3, 4]),
    "rating is at least 1": (DataCheck("rating", minimum=1), [0, 2, 4]),
    "rating is at most 5": (DataCheck("rating", maximum=5), [0, 1, 2]),
    "rating is one of 3, 7": (DataCheck("rating", allowed=("3", "7")), [0, 2, 4]),
    "rating matches [0-9]": (DataCheck("rating", pattern="[0-9]"), [0, 1, 2, 4]),
}


@pytest.mark.parametrize("rule", CHECKS)
def test_what_a_check_leaves_out(rule):
    table = pl.DataFrame({"rating": ["3", "0", None, "x", "7"], "other": range(5)})
    check, passes = CHECKS[rule]
    passed, left_out = check_table(table, [check], "interactions", "log.csv")
    assert passed.to_list() == passes
    assert left_out == {rule: 5 - len(passes)}


def test_an_empty_text_is_a_missing_value():
    table = pl.DataFrame({"rating": ["", " ", "4"]})
    assert check_table(table, [DataCheck("rating", minimum=1)], "interactions", "log")[1] == {}
    assert check_table(table, [DataCheck("rating", required=True)], "interactions", "log")[
        0
    ].to_list() == [2]


def test_unique_values_of_a_feature_table():
    table = pl.DataFrame({"item_id": ["a", "b", "b", None, None]})
    passed, left_out = check_table(
        table, [DataCheck("item_id", "items", unique=True)], "items", "items.csv"
    )
    assert passed.to_list() == [0, 3, 4]
    assert left_out == {"item_id is unique": 2}
    assert (
        check_table(table, [DataCheck("item_id", "users", unique=True)], "items", "items.csv")[1]
        == {}
    )


@pytest.mark.slow
@given(
    values=st.lists(st.one_of(st.none(), st.integers(-9, 9)), max_size=30), low=st.integers(-9, 9)
)
def test_every_row_passes_or_is_counted_once(values, low):
    table = pl.DataFrame({"x": values}, schema={"x": pl.Int64})
    checks = [DataCheck("x", required=True, minimum=low), DataCheck("x", maximum=low + 3)]
    passed, left_out = check_table(table, checks, "interactions", "log")
    assert len(passed) + sum(left_out.values()) == len(values)
    assert passed.to_list() == [
        n for n, x in enumerate(values) if x is not None and low <= x <= low + 3
    ]


def test_a_check_that_fails_names_the_rows(tmp_path):
    table = pl.DataFrame({"rating": [3, 9, 4, 8]})
    with pytest.raises(
        CheckFailedError,
        match=r"log.csv: 2 rows break the check that rating is at most 5: row 102 \(9\), row 104 \(8\)",
    ):
        check_table(
            table,
            [DataCheck("rating", maximum=5, otherwise="fail")],
            "interactions",
            "log.csv",
            first=100,
        )
    with pytest.raises(ColumnMissingError, match="no column 'stars'"):
        check_table(table, [DataCheck("stars", required=True)], "interactions", "log.csv")


def test_checks_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="demands nothing"):
        DataCheck("rating")
    with pytest.raises(ConfigError, match="read in parts"):
        DataCheck("rating", unique=True)
    with pytest.raises(ConfigError, match="is not a regular expression"):
        DataCheck("rating", pattern="(")


def test_what_the_checks_of_a_log_leave_out_is_reported():
    made = tables()
    checks = [
        DataCheck("event_type", allowed=("buy",)),
        DataCheck("price", "items", maximum=5.0),
        DataCheck("age", "users", maximum=50),
    ]
    data = prepare_dataset(
        made["log"],
        SCHEMA,
        users=made["users"],
        items=made["items"],
        checks=checks,
        rows_per_part=97,
    )
    views = made["log"].filter(pl.col("event_type") == "view").height
    assert data.info.cleaning_report.dropped["check that event_type is one of buy"] == views
    assert data.info.event_types == ("unknown", "buy")
    dear = made["items"].filter(pl.col("price") > 5).height
    assert (
        f"the items table: {dear:,} rows left out by the check that price is at most 5"
        in data.info.notes
    )
    assert any("users table" in note and "age is at most 50" in note for note in data.info.notes)


def test_erased_users_are_left_out_and_counted():
    log = tables()["log"]
    gone = ["u3", "u7"]
    data = prepare_dataset(log, Schema(timestamp="timestamp"), erased_users=gone)
    assert not set(gone) & set(data.info.user_ids)
    assert (
        data.info.cleaning_report.dropped["erased user"]
        == log.filter(pl.col("user_id").is_in(gone)).height
    )
    key = b"k" * 32
    for named in ("u3", pseudonym("u3", key)):
        data = prepare_dataset(
            log, Schema(timestamp="timestamp"), erased_users=[named], pseudonym_key=key
        )
        assert pseudonym("u3", key) not in data.info.user_ids
        assert pseudonym("u4", key) in data.info.user_ids


def test_checks_from_a_configuration_file(tmp_path, capsys):
    write_tables(tmp_path)
    text = """
    [data]
    interactions = "log.csv"
    erased_users = "erased.txt"
    [data.schema]
    timestamp = "timestamp"
    event_type = "event_type"
    [[data.checks]]
    column = "event_type"
    allowed = ["view"]
    """
    (tmp_path / "run.toml").write_text(text)
    assert read_config(tmp_path / "run.toml").data.erased_users == str(tmp_path / "erased.txt")
    arguments = ["prepare", "--config", str(tmp_path / "run.toml"), "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "the list of erased users, is not there" in capsys.readouterr().err
    (tmp_path / "erased.txt").write_text("u1\n\nu2\n")
    main(arguments)
    said = capsys.readouterr().err
    assert "dropped: check that event_type is one of view" in said
    assert "dropped: erased user" in said
    (tmp_path / "run.toml").write_text(text + '\n    otherwise = "fail"\n')
    with pytest.raises(SystemExit):
        main(arguments)
    assert "error [check_failed]" in capsys.readouterr().err
