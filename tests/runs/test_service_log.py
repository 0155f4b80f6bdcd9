"""New rows from a service: its events in the form of the log, and a refresh from them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.cli.app import main
from distilrec.data.readers import open_log
from distilrec.data.schema import Schema
from distilrec.data.times import as_seconds, time_format, written
from distilrec.errors import ConfigError, ServiceError
from distilrec.runs import ServiceLog, open_data, open_run
from tests.servers import served

MOMENT = datetime(2024, 5, 1, 12, 30, 15, tzinfo=UTC)
SECONDS = MOMENT.timestamp()
LOCAL = MOMENT.replace(tzinfo=None)


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([int(SECONDS)]),
        pl.Series([int(SECONDS)], dtype=pl.Int32),
        pl.Series([SECONDS + 0.25]),
        pl.Series([int(SECONDS * 1000) + 7]),
        pl.Series([int(SECONDS * 1e9)]),
        pl.Series([str(int(SECONDS))]),
        pl.Series(["2024-05-01 12:30:15"]),
        pl.Series(["2024-05-01T12:30:15Z"]),
        pl.Series(["31.05.2024 12:30"]),
        pl.Series([20240501123015]),
        pl.Series(["20240501"]),
        pl.Series([LOCAL]),
        pl.Series([LOCAL], dtype=pl.Datetime("ms")),
        pl.Series([LOCAL.date()]),
        pl.Series([MOMENT], dtype=pl.Datetime("us", "Europe/Berlin")),
    ],
    ids=lambda column: f"{column.dtype} {column[0]}",
)
@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_times_are_written_as_the_log_writes_them(column, zone):
    log = open_log(pl.DataFrame({"when": column}), None)
    times = time_format(log, Schema(timestamp="when", timezone=zone))
    rows = pl.Series([0])
    seconds = as_seconds(log.read()["when"], times, "log", rows)
    back = written(seconds, times, log.schema()["when"])
    assert back.dtype == column.dtype
    assert as_seconds(back.alias("when"), times, "log", rows).to_list() == pytest.approx(
        seconds.to_list(), abs=1e-6
    )


@given(st.floats(9e8, 1.7e9))
def test_what_the_form_has_no_place_for_is_cut_off(seconds):
    log = open_log(pl.DataFrame({"when": [int(SECONDS)]}), None)
    times = time_format(log, Schema(timestamp="when"))
    assert written(pl.Series([seconds]), times, pl.Int64()).to_list() == [int(seconds)]


@pytest.mark.server
def test_a_refresh_from_the_events_of_a_service(copied, capsys):
    """Events that came to the service, of known and new users, in 450 users and so in three answers."""
    before = open_data(open_run(copied))
    with served(copied / "bundle") as service:
        for start in range(0, 450, 50):
            events = [
                {
                    "user_id": f"visitor {start + n}",
                    "item_id": f"i{n % 7 + k}",
                    "event_type": "view",
                }
                for n in range(50)
                for k in range(3)
            ]
            service.post("/v1/events", events=events)
        service.event("u3", "i7", event_type="view")
        log = ServiceLog(service.url)
        assert log.read().height == 450 * 3 + 1
        assert ServiceLog(service.url, since=SECONDS + 1e9).read().is_empty()
        command = ["refresh", "--run", str(copied), "--events-from", service.url]
        with suppress(SystemExit):  # the bundle of so short a training may miss the gate by chance
            main(command)
        assert "1,351 new rows" in capsys.readouterr().err
        for query in ("since=soon", "since=nan"):
            refused = service.client.get(f"/v1/events?{query}")
            assert refused.status_code == 422
    after = open_data(open_run(copied / "generations/1"))
    assert after.users == before.users + 450
    with pytest.raises(ServiceError, match="gives no answer"):
        log.read()
    with pytest.raises(ConfigError, match="no address"):
        ServiceLog("localhost:8000").read()
    with pytest.raises(ServiceError, match="gives no answer"):
        ServiceLog(service.url, "dr_key\n").read()  # as it stands in a file
    with pytest.raises(ConfigError, match="DISTILREC_KEY holds characters") as caught:
        ServiceLog(service.url, "this is the k\u00e9y").read()
    assert "k\u00e9y" not in str(caught.value)


@pytest.mark.parametrize("more", [[], ["--log", "a.csv", "--events-from", "http://x"]])
def test_new_rows_come_from_one_place(more, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["refresh", "--run", "nowhere", *more])
    assert ended.value.code == 2
    assert "give --log FILE, or --events-from" in capsys.readouterr().err
