"""The whole line on a log without order, and what it says of that."""

from __future__ import annotations

import msgspec
import pytest

from distilrec.data.dataset import load_dataset
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


@pytest.mark.parametrize("order", ["auto", "time"])
def test_the_whole_line(tmp_path, order, monkeypatch):
    fitted = []
    monkeypatch.setattr(
        baselines, "item_knn", lambda data: fitted.append(item_knn(data)) or fitted[-1]
    )
    log(users=40).write_parquet(tmp_path / "log.parquet")
    training = TrainingConfig(epochs=3, patience=3, batch_size=16)
    network = RecurrentConfig(dim=8, max_history=12)
    config = RunConfig(
        DataConfig(interactions=str(tmp_path / "log.parquet"), order=order),
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
    without = order == "auto"
    assert comparison.order == ("none" if without else "time")
    assert ("those held out were drawn at random" in page) == without
    assert any("no order of a user's events is known" in line for line in said.lines) == without
    data = load_dataset(tmp_path / "run" / "data")
    labels = open_labels(tmp_path / "run" / "labels", data)
    assert len(labels) == labels.extraction.events * (2 if without else 1)

    again = Said()
    run_all(msgspec.structs.replace(config), tmp_path / "run", again)
    assert any("student: already trained" in line for line in again.lines)
