"""The whole line on a log without order, and what it says of that."""

from __future__ import annotations

import msgspec
import polars as pl
import pytest

from distilrec.data.dataset import load_dataset
from distilrec.data.schema import Schema
from distilrec.data.splits import Split
from distilrec.labels.extract import LabelConfig
from distilrec.labels.store import open_labels
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.report import baselines
from distilrec.report.baselines import item_knn
from distilrec.runs.config import DataConfig, RunConfig
from distilrec.runs.stages import run_all
from distilrec.teachers.build import EnsembleConfig, MemberConfig
from distilrec.teachers.linear import LinearConfig
from distilrec.training.options import TrainingConfig
from tests.data.test_order import log
from tests.small_run import Said

pytestmark = pytest.mark.slow

UNKNOWN = "no order of a user's events is known"


IN_TIME = Split(kind="global-time")


@pytest.mark.parametrize(
    ("order", "split"), [("auto", Split()), ("none", IN_TIME), ("time", Split())]
)
def test_the_whole_line(tmp_path, order, split, monkeypatch):
    fitted = []
    monkeypatch.setattr(
        baselines, "item_knn", lambda data: fitted.append(item_knn(data)) or fitted[-1]
    )
    timed = split is IN_TIME
    made = log(users=40)
    hours = 1.5e9 + 3600.0 * (pl.int_range(pl.len()) % 8)
    (made.with_columns(timestamp=hours) if timed else made).write_parquet(tmp_path / "log.parquet")
    schema = Schema(timestamp="timestamp") if timed else Schema()
    training = TrainingConfig(epochs=3, patience=3, batch_size=16)
    network = RecurrentConfig(dim=8, max_history=12)
    config = RunConfig(
        DataConfig(interactions=str(tmp_path / "log.parquet"), order=order, schema=schema),
        split=split,
        teacher=EnsembleConfig((MemberConfig(network), MemberConfig(LinearConfig()))),
        teacher_training=training,
        labels=LabelConfig(top_k=5, samples=5, orders=2),
        student=network,
        student_training=training,
    )
    said = Said()
    comparison = run_all(config, tmp_path / "run", said)
    assert len(fitted) == 1  # for the warning before the training, and for the comparison
    page = (tmp_path / "run" / "report.html").read_text()
    without = order != "time"
    assert comparison.order == ("none" if without else "time")
    assert ("models were trained on sets of events" in page) == without
    for said_so in ("those held out were drawn at random" in page, UNKNOWN in str(said.lines)):
        assert said_so == (order == "auto")
    data = load_dataset(tmp_path / "run" / "data")
    labels = open_labels(tmp_path / "run" / "labels", data)
    assert len(labels) == labels.extraction.events * (2 if without else 1)

    again = Said()
    run_all(msgspec.structs.replace(config), tmp_path / "run", again)
    assert any("student: already trained" in line for line in again.lines)
