"""Baselines and the comparison."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest

from distilrec.data.preparation import prepare_dataset
from distilrec.data.splits import Split
from distilrec.errors import NothingToEvaluateError
from distilrec.measure import slices
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.measure.slices import user_slices
from distilrec.measure.statistics import bootstrap_each
from distilrec.report import comparison as report
from distilrec.report.baselines import (
    ease,
    fitted_baselines,
    item_knn,
    popularity,
)
from distilrec.report.comparison import ALONE, STUDENT, TEACHER, Candidate, Comparison, compare
from distilrec.report.page import verdict
from distilrec.training.validation import validation_ndcg
from tests.small_run import SCHEMA, dataset, interaction_matrix, tables


@pytest.mark.filterwarnings("ignore::Warning")
def test_ease_is_that_of_rectools(small):
    from rectools import Columns
    from rectools.dataset import Dataset as RecToolsDataset
    from rectools.models import EASEModel

    rows = small.is_training()
    log = pd.DataFrame(
        {
            Columns.User: small.user_rows()[rows],
            Columns.Item: small.items[rows],
            Columns.Weight: 1.0,
        }
    )
    log[Columns.Datetime] = "2024-01-01"
    theirs = EASEModel(regularization=20.0).fit(RecToolsDataset.construct(log))
    order = theirs_items = RecToolsDataset.construct(log).item_id_map.external_ids.astype(int)
    ours = ease(small, 20.0).weights[np.ix_(order, theirs_items)]
    np.testing.assert_allclose(ours, theirs.weight, atol=1e-5)


def test_item_knn_adds_up_the_cosines_of_the_nearest(small):
    """Of the items that a user had, each once; two items of the catalogue have no training rows."""
    x = interaction_matrix(small)
    norms = np.sqrt(np.maximum(np.outer(x.sum(0), x.sum(0)), 1e-12))
    cosines = (x.T @ x / norms) * (1 - np.eye(small.catalogue_size))
    histories = questions(small, "test").histories
    for number in (5, 100):
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :number]
        cut = np.zeros_like(cosines)
        np.put_along_axis(cut, nearest, np.take_along_axis(cosines, nearest, 1), 1)
        expected = [cut[np.unique(histories.of(k))].sum(0) for k in range(len(histories))]
        got = item_knn(small, [number]).scores(histories)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_item_knn_has_the_number_of_neighbours_that_is_best_on_validation(small):
    numbers = (1, 3, 5, 10, 20)
    by_number = {n: validation_ndcg(item_knn(small, [n]), small) for n in numbers}
    chosen = item_knn(small, numbers)
    assert by_number[chosen.near.shape[1]] == max(by_number.values())
    assert len(set(by_number.values())) > 1


def test_popularity_ranks_the_catalogue_order_first(small):
    ranking = rank(popularity(small), questions(small, "test", exclude_seen=False))
    assert (ranking.top == np.arange(10)).all()  # items are numbered by popularity


def test_questions_of_both_splits():
    for kind in ("leave-one-out", "global-time"):
        data = dataset(kind)
        asked = questions(data, "test")
        for k in range(len(asked.histories)):
            user = asked.histories.users[k]
            targets = asked.targets[asked.offsets[k] : asked.offsets[k + 1]]
            history = data.items[data.offsets[user] : data.validation_end[user]]
            assert asked.histories.of(k).tolist() == history.tolist()
            assert set(targets) <= set(
                data.items[data.validation_end[user] : data.offsets[user + 1]]
            )
            assert not set(targets) & set(history)


def test_repeats_are_asked_for_when_they_are_the_point():
    made = tables()
    log = made["log"]
    again = (
        log.group_by("user_id", maintain_order=True)
        .first()
        .with_columns(timestamp=pl.lit(log["timestamp"].max() + 1, pl.Int64))
    )
    twice = again.with_columns(timestamp=pl.lit(log["timestamp"].max() + 2, pl.Int64))

    columns = log.columns
    repeated = pl.concat([log, again.select(columns), twice.select(columns)])
    data = prepare_dataset(repeated, SCHEMA, users=made["users"], items=made["items"])
    assert not data.info.repeats  # none within the training rows
    with pytest.raises(NothingToEvaluateError):
        questions(data, "test")
    kept = questions(data, "test", exclude_seen=False)
    assert len(kept.targets) == data.users
    often = pl.concat([log, log.with_columns(timestamp=pl.col("timestamp") + 10_000)])
    assert prepare_dataset(often, SCHEMA, users=made["users"], items=made["items"]).info.repeats


def test_all_cold_test_part():
    made = tables()

    log = made["log"].sort("timestamp").with_row_index()
    late = pl.col("index") >= int(0.88 * log.height)
    cold = log.with_columns(
        item_id=pl.when(late).then(pl.format("new-{}", "index")).otherwise("item_id")
    ).drop("index")
    data = prepare_dataset(
        cold, SCHEMA, users=made["users"], items=made["items"], split=Split(kind="global-time")
    )
    with pytest.raises(NothingToEvaluateError, match="the test part has no item"):
        questions(data, "test")


class Oracle:
    """Knows the answer for a share of the users."""

    def __init__(self, data, share, seed=0):
        self.data, self.asked, self.share, self.seed = data, questions(data, "test"), share, seed

    def scores(self, histories):
        rng = np.random.default_rng(self.seed)
        out = rng.normal(size=(len(histories), self.data.catalogue_size)).astype(np.float32)
        answers = dict(
            zip(
                self.asked.histories.users, self.asked.targets[self.asked.offsets[:-1]], strict=True
            )
        )
        for k, user in enumerate(histories.users):
            if rng.random() < self.share:
                out[k, answers[user]] = 99
        return out


@pytest.fixture(scope="module")
def comparison(small):
    with pytest.MonkeyPatch.context() as patch:
        # Intervals of fewer resamples are as good to test with, and take a tenth of the time.
        patch.setattr(report, "bootstrap_each", partial(bootstrap_each, resamples=400))
        return compare(
            small,
            [
                Candidate(TEACHER, (Oracle(small, 0.6), Oracle(small, 0.6, 1)), 1_000, 4_000, 2.0),
                Candidate(STUDENT, (Oracle(small, 0.95), Oracle(small, 0.95, 1)), 10, 40, 1.0),
                Candidate(ALONE, (Oracle(small, 0.1), Oracle(small, 0.1, 1)), 10, 40, 1.0),
                Candidate("popularity", (popularity(small),) * 2),
            ],
        )


def test_the_comparison_says_what_is_so(comparison, small):
    student = comparison.row(STUDENT)
    direct = np.mean(
        [
            ndcg(rank(Oracle(small, 0.95, seed), questions(small, "test")), 10).mean()
            for seed in (0, 1)
        ]
    )
    assert student.quality["ndcg@10"].mean == pytest.approx(direct)
    assert student.quality["ndcg@10"].low <= direct <= student.quality["ndcg@10"].high
    retention = direct / comparison.row(TEACHER).quality["ndcg@10"].mean
    assert student.retention["ndcg@10"] == pytest.approx(retention)
    assert comparison.row(TEACHER).agreement is None
    by_pair = {(d.a, d.b): d for d in comparison.differences if d.metric == "ndcg@10"}
    assert by_pair[STUDENT, ALONE].interval.excludes_zero
    assert by_pair[STUDENT, ALONE].p_value < 0.001
    lines = verdict(comparison)
    assert lines[0].startswith(
        "The student is better than the same student without distillation: +0."
    )
    assert (
        sum(comparison.slice_sizes[f"{name} items"] for name in ("head", "middle", "tail", "cold"))
        == small.users
    )
    assert msgspec.json.decode(msgspec.json.encode(comparison), type=Comparison) == comparison


def test_equal_models_are_called_equal(small):
    same = Oracle(small, 0.5)
    comparison = compare(small, [Candidate(name, (same,)) for name in (TEACHER, STUDENT, ALONE)])
    assert all("not distinguishable from" in line for line in verdict(comparison)[:2])
    assert comparison.row(STUDENT).agreement == 1.0
    assert comparison.differences[0].p_value == 1.0


def test_baselines_are_chosen_on_validation(small):
    assert set(fitted_baselines(small)) == {"popularity", "ItemKNN", "EASE"}


def test_groups_of_users_by_their_features(monkeypatch):
    """Each group holds the users that the table says, whatever their order; small ones are left out."""
    made = tables()
    data = prepare_dataset(made["log"], SCHEMA, users=made["users"], items=made["items"])
    monkeypatch.setattr(slices, "_FEWEST_USERS", 5)
    users = np.arange(data.users)[::-1]
    groups = user_slices(data, users)
    table = {row["user_id"]: row for row in made["users"].iter_rows(named=True)}
    rows = [table[data.info.user_ids[user]] for user in users]
    for country in ("de", "fr", "pl"):
        assert groups[f"country {country}"].tolist() == [row["country"] == country for row in rows]
    assert "country unknown" not in groups
    assert groups["age unknown"].tolist() == [row["age"] is None for row in rows]
    ages = sorted(row["age"] for row in rows if row["age"] is not None)
    thirds = [groups[f"age, {name} third"] for name in ("lowest", "middle", "highest")]
    assert (
        sum(third.astype(int) for third in thirds) == [row["age"] is not None for row in rows]
    ).all()
    assert (
        max(row["age"] for row, inside in zip(rows, thirds[0], strict=True) if inside)
        <= ages[len(ages) // 3 + 1]
    )
    assert (
        min(row["age"] for row, inside in zip(rows, thirds[2], strict=True) if inside)
        >= ages[2 * len(ages) // 3 - 1]
    )
    monkeypatch.setattr(slices, "_FEWEST_USERS", 20)
    few = [
        name
        for name, inside in groups.items()
        if inside.sum() < 20 and "history" not in name and name != "cold users"
    ]
    assert few and not set(few) & set(user_slices(data, users))
