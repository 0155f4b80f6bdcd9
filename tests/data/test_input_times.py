"""The times of logs from other tools: one format for a column, or an error that shows two readings."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from distilrec.data.cleaning import Cleaning
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.errors import ColumnTypeError, ConfigError

START = 1_690_848_000  # 2023-08-01 00:00 UTC


def dataset(times, *, schema=None, cleaning=None, rows_per_part=1_000_000):
    """A data set of users with these times each, one item a time."""
    count = len(times)
    table = pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in range(3) for _ in range(count)],
            "item_id": [f"i{i}" for _ in range(3) for i in range(count)],
            "timestamp": pl.concat(
                [times if isinstance(times, pl.Series) else pl.Series(times, strict=False)] * 3
            ),
        }
    )
    schema = schema or Schema(timestamp="timestamp")
    return prepare_dataset(table, schema, cleaning=cleaning, rows_per_part=rows_per_part)


def read(times, **options):
    """The times of one user, as they were read."""
    data = dataset(times, **options)
    return [
        datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S")
        for t in data.times[: data.offsets[1]]
    ]


def refusal(times, **options):
    with pytest.raises(ColumnTypeError) as caught:
        dataset(times, **options)
    return caught.value


def schema(**told):
    return Schema(timestamp="timestamp", **told)


NOON = ["2023-08-01 12:00:00", "2023-08-02 13:30:15", "2023-08-13 00:00:00"]


@pytest.mark.parametrize(
    ("day_first", "pattern"),
    [
        ("%d/%m/%Y", "%d/%m/%Y"),
        ("%m/%d/%Y", "%m/%d/%Y"),
        ("%d.%m.%Y %H:%M", None),
        ("%m-%d-%Y %I:%M:%S %p", None),
    ],
)
def test_a_day_past_the_twelfth_decides_for_the_whole_column(day_first, pattern):
    days = [datetime(2023, 8, day, 12, tzinfo=UTC) for day in (1, 2, 3, 13)]
    found = read([day.strftime(day_first) for day in days])
    assert [time[:10] for time in found] == [f"2023-08-{day:02}" for day in (1, 2, 3, 13)]
    if pattern is None:
        assert {time[11:] for time in found} == {"12:00:00"}


def test_the_row_that_decides_may_be_the_last_of_many():
    times = ["01/08/2023"] * 1_500 + ["30/08/2023"]
    data = dataset(times, rows_per_part=500)
    assert (data.times.min(), data.times.max()) == (START, START + 29 * 86_400)


def test_an_ambiguous_column_shows_both_readings():
    problem = refusal(["01/08/2023", "03/07/2023", "09/04/2023"])
    assert "2023-08-01 as %d/%m/%Y" in problem.message
    assert "2023-01-08 as %m/%d/%Y" in problem.message
    assert problem.context["column"] == "timestamp"
    for told, first in (("%d/%m/%Y", "2023-08-01"), ("%m/%d/%Y", "2023-01-08")):
        times = read(
            ["01/08/2023", "01/08/2023", "01/08/2023"], schema=schema(timestamp_format=told)
        )
        assert times[0][:10] == first


def test_days_and_months_that_change_places_name_the_row():
    problem = refusal(["13/08/2023", "14/08/2023", "08/15/2023"])
    assert "row 3" in problem.message
    assert "'08/15/2023'" in problem.message


@pytest.mark.parametrize("ending", ["Z", " UTC", "UTC", "+00:00", "+0000", " +0000", "+00", " GMT"])
@pytest.mark.parametrize("between", [" ", "T"])
def test_zones_are_read(ending, between):
    assert read([text.replace(" ", between) + ending for text in NOON]) == NOON


def test_offsets_and_fractions_are_read():
    assert (
        read([f"{text.replace(' ', 'T')}.250+02:00" for text in NOON])[0] == "2023-08-01 10:00:00"
    )
    assert read([f"{text},123" for text in NOON]) == NOON


@pytest.mark.slow
def test_forms_of_dates():
    days = [datetime(2023, 8, day, tzinfo=UTC) for day in (1, 2, 13)]
    expected = [f"{day:%Y-%m-%d} 00:00:00" for day in days]
    for form in (
        "%Y-%m-%d",
        "%Y/%m/%d",
        "%d %b %Y",
        "%b %d, %Y",
        "%d-%b-%Y",
        "%a, %d %b %Y %H:%M:%S GMT",
        "%Y%m%dT%H%M%SZ",
    ):
        assert read([day.strftime(form) for day in days]) == expected, form
    assert read([day.date() for day in days]) == expected


def test_dates_as_digits_are_dates():
    days = [20230801, 20230802, 20230813]
    expected = ["2023-08-01 00:00:00", "2023-08-02 00:00:00", "2023-08-13 00:00:00"]
    forms = [days, [str(d) for d in days], [f"{d}.0" for d in days], [float(d) for d in days], [d * 10_000 for d in days],
             [d * 1_000_000 for d in days]]  # fmt: skip
    for form in forms:
        assert read(form) == expected, form
    notes = dataset(days).info.cleaning_report.notes
    assert any("read as dates, digit by digit" in note for note in notes)
    assert any("dates without a time of day" in note for note in notes)
    problem = refusal([*days, 20230231])
    assert "row 4" in problem.message
    assert "20230231" in problem.message


def test_seconds_to_nanoseconds_are_told_apart():
    for scale in (1, 10**3, 10**6, 10**9):
        times = [(START + n) * scale for n in range(3)]
        for form in (times, [str(t) for t in times], [float(t) for t in times]):
            assert read(form)[0] == "2023-08-01 00:00:00"


@pytest.mark.parametrize("odd", [START * 1_000, START * 10**6, 20230801])
def test_two_units_in_one_column_are_refused(odd):
    for times in ([START + n for n in range(5)] + [odd], [odd] + [START + n for n in range(5)]):
        problem = refusal(times)
        assert str(odd) in problem.message
        assert str(START) in problem.message
        assert problem.context["column"] == "timestamp"
    data = dataset(
        [*(START + n for n in range(5)), START * 1_000], schema=schema(timestamp_format="seconds")
    )
    assert (
        data.info.cleaning_report.dropped["time out of range"] == 3
    )  # told so: these are too late


def test_numbers_that_are_no_plausible_time_are_refused():
    for times in (
        [133_355_232_000_000_000 + n for n in range(5)],
        [638_396_640_000_000_000 + n for n in range(5)],
    ):
        problem = refusal(times)  # Windows file times, .NET ticks
        assert "no reading of them is a plausible time" in problem.message


def test_small_numbers_are_seconds_and_the_report_says_so():
    data = dataset([45_292 + n for n in range(4)])  # days since 1900, as spreadsheets count them
    assert any(
        "1970-01-01" in note and "timestamp_format" in note
        for note in data.info.cleaning_report.notes
    )
    quiet = dataset([START + n for n in range(4)])
    assert quiet.info.cleaning_report.notes == ()


def test_text_among_numbers_and_numbers_among_text_name_the_row():
    assert (
        "row 3: column 'timestamp' holds '2023-08-01'"
        in refusal([str(START), str(START), "2023-08-01"]).message
    )
    assert (
        "row 3: column 'timestamp' holds '1690848000'"
        in refusal(["2023-08-01", "2023-08-02", str(START)]).message
    )


def test_missing_times_are_dropped_and_counted():
    data = dataset(["2023-08-01", "2023-08-02", "2023-08-13", "", None, " "])
    assert data.info.cleaning_report.dropped["no timestamp"] == 9


@pytest.mark.slow
def test_local_times_are_read_in_their_zone():
    told = schema(timezone="Europe/Berlin")
    assert read(NOON, schema=told)[0] == "2023-08-01 10:00:00"
    assert read(pl.Series(NOON).str.to_datetime(), schema=told)[0] == "2023-08-01 10:00:00"
    assert read([20230801, 20230802, 20230803], schema=told)[0] == "2023-07-31 22:00:00"
    assert read([f"{text}Z" for text in NOON], schema=told) == NOON  # these name their zone
    assert read([START + n for n in range(3)], schema=told)[0] == "2023-08-01 00:00:00"
    assert any(
        "Europe/Berlin" in note for note in dataset(NOON, schema=told).info.cleaning_report.notes
    )
    assert any("read as UTC" in note for note in dataset(NOON).info.cleaning_report.notes)
    # An hour that a clock set forward leaves out, and one that it has twice.
    gap = ["2023-03-26 02:30:00", "2023-03-26 03:30:00", "2023-10-29 02:30:00"]
    assert read(gap, schema=told) == [
        "2023-03-26 01:30:00",
        "2023-03-26 01:30:00",
        "2023-10-29 00:30:00",
    ]


@pytest.mark.slow
def test_types_of_times_in_parquet(tmp_path):
    base = {"user_id": ["a", "a", "a", "b", "b", "b"], "item_id": list("xyzxyz")}
    text = pl.Series(NOON * 2)
    forms = {
        "dictionary": text.cast(pl.Categorical),
        "enum": text.cast(pl.Enum(NOON)),
        "binary": text.cast(pl.Binary),
        "milliseconds": text.str.to_datetime(time_unit="ms"),
        "nanoseconds": text.str.to_datetime(time_unit="ns"),
        "zone": text.str.to_datetime()
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone("Asia/Tokyo"),
        "zoned text": (text + " UTC").cast(pl.Categorical),
    }
    for name, times in forms.items():
        path = tmp_path / f"{name}.parquet"
        pl.DataFrame({**base, "timestamp": times}).write_parquet(path)
        data = prepare_dataset(path, Schema(timestamp="timestamp"))
        assert [
            f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S}" for t in data.times[:3]
        ] == NOON, name
    pl.DataFrame({**base, "timestamp": [True] * 6}).write_parquet(tmp_path / "flags.parquet")
    with pytest.raises(
        ColumnTypeError, match="column 'timestamp' holds Boolean, which is not a time"
    ):
        prepare_dataset(tmp_path / "flags.parquet", Schema(timestamp="timestamp"))


def test_settings_of_times_are_checked():
    for told, name in (
        ({"timestamp_format": "day first"}, "timestamp_format"),
        ({"timezone": "Berlin"}, "timezone"),
    ):
        with pytest.raises(ConfigError) as caught:
            schema(**told)
        assert caught.value.context["parameter"] == name
    with pytest.raises(ConfigError, match="%d %H"):
        dataset(["1 12"] * 3, schema=schema(timestamp_format="%Y-%m-%d %H"))


def test_dates_do_not_make_bots_of_people():
    """What was read as seconds of 1970 put all events of a user on one day."""
    data = dataset(
        [20230000 + 100 * month + day for month in (7, 8) for day in range(1, 30)],
        cleaning=Cleaning(bot_events_per_day=20),
    )
    assert data.info.cleaning_report.rows_out == 3 * 58
