"""What comes in now against the training log."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from distilrec.report.drift import drift, stability_index
from tests.small_run import tables


@given(
    counts=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=12)
)
def test_the_stability_index_is_the_divergence_both_ways(counts):
    before, now = np.array(counts).T
    value = stability_index(before, now)
    assert value == pytest.approx(
        entropy(before + 0.5, now + 0.5) + entropy(now + 0.5, before + 0.5), abs=1e-9
    )
    assert value >= -1e-12
    assert stability_index(before, before) == 0


def live():
    return tables()["log"].with_columns(pl.col("event_type").cast(pl.String))


def values(small, log):
    return {shift.what.split(" (")[0]: shift for shift in drift(small, log)}


def test_the_training_log_has_not_moved(small):
    found = values(small, live())
    assert all(shift.passed for shift in found.values()), found
    assert found["events of users without training rows"].value == 0
    assert found["events of unknown types"].value == 0


def test_what_has_moved_is_named(small):
    half = pl.int_range(pl.len()) % 2 == 0
    found = values(
        small, live().with_columns(item_id=pl.when(half).then(pl.lit("new")).otherwise("item_id"))
    )
    assert found["events of items without training rows"].value == pytest.approx(0.5, abs=0.01)
    assert not found["events of items without training rows"].passed
    found = values(small, live().with_columns(event_type=pl.lit("buy")))
    assert not found["types of events"].passed
    found = values(small, live().with_columns(event_type=pl.lit("return")))
    assert found["events of unknown types"].value == 1
    found = values(small, live().with_columns(user_id=pl.format("stranger-{}", "user_id")))
    assert found["events of users without training rows"].value == 1
    top = small.info.item_ids[0]
    found = values(small, live().with_columns(item_id=pl.lit(top)))
    assert not found["popularity of the items"].passed
    rng = np.random.default_rng(0)
    one = live().with_columns(
        user_id=pl.when(pl.Series(rng.random(live().height) < 0.9))
        .then(pl.lit("u1"))
        .otherwise("user_id")
    )
    assert not values(small, one)["events per user, in units of their mean"].passed


@pytest.mark.slow
def test_the_command_fails_where_something_has_moved(finished_run, tmp_path):
    def check(log):
        log.write_csv(tmp_path / "today.csv")
        return subprocess.run(
            [sys.executable, "-m", "distilrec.cli", "drift", "--run", finished_run.folder, "--log", tmp_path / "today.csv"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = check(live())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("    ok  ") == 6
    done = check(live().with_columns(item_id=pl.format("new-{}", "item_id")))
    assert done.returncode == 1
    assert " moved  events of items without training rows: 1.000 (limit 0.2)" in done.stdout
    done = check(live().drop("item_id"))
    assert done.returncode == 2
    assert "has no column 'item_id'" in done.stderr
