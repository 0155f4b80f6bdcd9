"""The whole line on ratings, of which some are targets and some are dislikes."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl
import pytest

from distilrec import load, read_config
from distilrec.bundle.format import read_bundle
from distilrec.engine.web import write_drec
from distilrec.errors import ConfigError
from distilrec.report.drift import drift
from distilrec.runs.source import new_log
from distilrec.runs.stages import run_all
from tests.small_run import Said

pytestmark = pytest.mark.slow

CONFIG = """
[data]
interactions = "ratings.csv"
[data.schema]
timestamp = "timestamp"
weight = "rating"
[targets]
events = [{ target_from = 4, negative_to = 2 }]
[teacher]
kind = "recurrent"
dim = 8
max_history = 12
[teacher_training]
epochs = 2
[labels]
top_k = 5
samples = 5
[student]
dim = 8
max_history = 12
[student_training]
epochs = 2
"""


def ratings(folder):
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", int(rng.integers(1, 6)), 1_600_000_000 + 60 * n)
        for user in range(40)
        for n, item in enumerate(rng.permutation(30)[: rng.integers(8, 20)])
    ]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "rating", "timestamp"], orient="row")
    frame.write_csv(folder / "ratings.csv")
    (folder / "my.toml").write_text(CONFIG)
    return frame


def test_a_log_of_ratings(tmp_path):
    log = ratings(tmp_path)
    config, said = read_config(tmp_path / "my.toml"), Said()
    comparison = run_all(config, tmp_path / "run", said)
    assert any("rows are negative: interaction:negative" in line for line in said.lines)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "target from a weight of 4 on, negative up to a weight of 2" in page
    assert {"popularity", "ItemKNN", "EASE"} <= {row.name for row in comparison.rows}

    bundle = read_bundle(tmp_path / "run" / "bundle")
    roles = dict(zip(bundle.manifest.event_types, bundle.manifest.roles, strict=True))
    assert roles == {
        "unknown": "inform", "interaction": "target",
        "interaction:inform": "inform", "interaction:negative": "negative",
    }  # fmt: skip
    assert bundle.manifest.format_version == 7
    liked = log.filter(pl.col("rating") >= 4)["item_id"].value_counts()
    assert bundle.catalogue.popularity.sum() <= liked["count"].sum()  # without what is held out
    load(tmp_path / "run" / "bundle")  # with its golden answers
    with pytest.raises(ConfigError, match="knows negative events cannot be exported for the web"):
        write_drec(bundle, tmp_path / "student.drec")

    # Preparing with other meanings makes other data; the same ones are used again.
    other = msgspec.structs.replace(config, targets=None)
    assert run_all(other, tmp_path / "other").users > comparison.users


def test_drift_reads_a_new_log_with_the_same_meanings(tmp_path):
    from distilrec.data.cleaning import clean_log
    from distilrec.runs.stages import prepare

    ratings(tmp_path)
    run, dataset = prepare(read_config(tmp_path / "my.toml"), tmp_path / "run")
    source = new_log(run, tmp_path / "ratings.csv")
    clean = clean_log(source.log.open(tmp_path), source, run.config.cleaning, tmp_path)
    found = {line.what: line.value for line in drift(dataset, clean.part(0))}
    assert found["events of unknown types"] == 0.0
