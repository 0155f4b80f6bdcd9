"""Which teacher a run has where its configuration names none, and what a refresh keeps."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl
import pytest

from distilrec import runs
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.report.gate import Thresholds
from distilrec.runs.config import DataConfig, RunConfig
from distilrec.runs.refreshing import refresh
from distilrec.runs.teachers import chosen_teacher
from distilrec.teachers import build
from distilrec.teachers.ensemble import single_teachers
from distilrec.teachers.linear import LinearConfig
from distilrec.training.options import TrainingConfig
from tests.small_run import dataset, small_config, write_tables

SHORT = TrainingConfig(epochs=1)


@pytest.mark.parametrize(
    ("order", "repeats", "kind"),
    [
        ("time", False, TransformerConfig),
        ("time", True, RecurrentConfig),
        ("none", False, RecurrentConfig),
    ],
)
def test_it_depends_on_the_log(order, repeats, kind):
    info = msgspec.structs.replace(dataset().info, order=order, repeats=repeats)
    config = RunConfig(DataConfig(dataset="ml-100k"))
    teacher, training = chosen_teacher(config, info)
    assert type(teacher) is kind
    rate = 4e-3 if kind is RecurrentConfig else TrainingConfig().learning_rate
    assert training == TrainingConfig(learning_rate=rate)
    given = msgspec.structs.replace(config, teacher_training=SHORT)
    assert chosen_teacher(given, info) == (teacher, SHORT)
    given = msgspec.structs.replace(config, teacher=LinearConfig())
    assert chosen_teacher(given, info) == (LinearConfig(), TrainingConfig())


@pytest.mark.slow
def test_a_refresh_keeps_it_where_the_log_gets_its_first_repeat(tmp_path):
    """And the order of events at the same time."""
    write_tables(tmp_path)
    log = pl.read_csv(tmp_path / "log.csv").with_columns(pl.col("timestamp") // 600 * 600)
    log.unique(["user_id", "item_id"], keep="first", maintain_order=True).write_csv(
        tmp_path / "log.csv"
    )
    config = msgspec.structs.replace(small_config(tmp_path), teacher=None, teacher_training=SHORT)
    runs.run_all(config, tmp_path / "run")
    was = runs.open_data(runs.open_run(tmp_path / "run")).info
    assert not was.repeats and was.order == "time"
    again = log.tail(60).with_columns(pl.col("timestamp") + 1_000_000)
    done = refresh(tmp_path / "run", again, thresholds=Thresholds(size={"bytes": 1e9}))
    assert done is not None
    made = runs.open_run(tmp_path / "run/generations/1")
    now = runs.open_data(made).info
    assert now.repeats and now.order == "time"
    assert made.config.data.ties == "rows"
    whole = prepare_dataset(made.config.data.interactions, Schema(timestamp="timestamp"))
    assert whole.info.order == "ties"
    assert made.config.teacher == TransformerConfig() and made.config.teacher_training == SHORT


@pytest.mark.slow
def test_a_refresh_keeps_members_in_closed_form_where_the_catalogue_passes_their_limit(
    tmp_path, monkeypatch
):
    write_tables(tmp_path)
    config = msgspec.structs.replace(small_config(tmp_path), closed_form=None)
    runs.run_all(config, tmp_path / "run")
    items = runs.open_data(runs.open_run(tmp_path / "run")).info.warm_items
    monkeypatch.setattr(build, "LARGEST_CATALOGUE", items)
    rows = [(f"u{user}", "fresh", 1_700_000_000 + n) for user in range(9) for n in range(9)]
    late = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    late = late.with_columns(event_type=pl.lit("view"))
    assert refresh(tmp_path / "run", late, thresholds=Thresholds(size={"bytes": 1e9})) is not None
    made = runs.open_run(tmp_path / "run/generations/1")
    now = runs.open_data(made)
    assert now.info.warm_items > items
    assert len(single_teachers(runs.open_teacher(made, now))) == 3


@pytest.mark.slow
def test_a_refresh_keeps_the_order_where_most_new_users_have_one_basket(tmp_path):
    rng = np.random.default_rng(0)

    def bought(user: str, days: range) -> list[tuple[str, str, int]]:
        return [(user, f"i{rng.integers(20)}", 86_400 * day) for day in days for _ in range(4)]

    rows = [row for n in range(60) for row in bought(f"u{n}", range(17_000, 17_001 + n % 2))]
    new = [row for n in range(900) for row in bought(f"new{n}", range(17_003, 17_004))]
    columns = ["user_id", "item_id", "timestamp"]
    frame = pl.DataFrame(rows, schema=columns, orient="row")
    frame.write_csv(tmp_path / "log.csv")
    small = small_config(tmp_path)
    data = DataConfig(interactions=str(tmp_path / "log.csv"), schema=Schema(timestamp="timestamp"))
    config = msgspec.structs.replace(
        small, data=data, teacher_training=SHORT, student_training=SHORT
    )
    runs.run_all(config, tmp_path / "run")
    assert runs.open_data(runs.open_run(tmp_path / "run")).info.order == "ties"
    late = pl.DataFrame(new, schema=columns, orient="row")
    done = refresh(tmp_path / "run", late, thresholds=Thresholds(size={"bytes": 1e9}))
    assert done is not None
    made = runs.open_run(tmp_path / "run/generations/1")
    assert runs.open_data(made).info.order == "ties"
    whole = prepare_dataset(made.config.data.interactions, Schema(timestamp="timestamp"))
    assert whole.info.order == "none"
