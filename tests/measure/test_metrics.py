"""Metrics against RecTools and ranx to 1e-9, and against their definitions by hand."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from distilrec.data.dataset import UNKNOWN_ITEM, Histories
from distilrec.errors import InvalidValueError
from distilrec.measure import metrics, statistics
from distilrec.measure import ranking as ranking_module
from distilrec.measure.ranking import MOST_SCORES, Questions, Ranking, rank, users_at_once
from distilrec.measure.statistics import (
    bootstrap,
    bootstrap_each,
    paired_difference,
    randomisation_test,
)

ITEMS, K = 30, 10


def quietly(name: str):
    """Another library, loaded by the test that needs it: that takes seconds, and it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


class Fixed:
    """Scores given in advance."""

    def __init__(self, scores):
        self.values = np.asarray(scores, np.float32)

    def scores(self, histories: Histories):
        return self.values[histories.users]


def ask(targets, seen=None, exclude_seen=True):
    users = len(targets)
    seen = seen or [[] for _ in range(users)]
    histories = Histories(
        np.arange(users),
        np.concatenate([[0], np.cumsum([len(items) for items in seen])]).astype(np.int64),
        np.array([item for items in seen for item in items], np.int32),
        np.zeros(sum(len(items) for items in seen), np.int32),
    )
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in targets])]).astype(np.int64)
    return Questions(
        histories,
        offsets,
        np.array([t for items in targets for t in items], np.int32),
        exclude_seen,
        0,
        ITEMS,
    )


def random_case(seed, most=5):
    """Scores without ties, targets, and some history that is disjoint from the targets."""
    rng = np.random.default_rng(seed)
    users = 12
    scores = np.stack([rng.permutation(ITEMS) for _ in range(users)]).astype(np.float32)
    targets, seen = [], []
    for _ in range(users):
        order = rng.permutation(ITEMS)
        size = rng.integers(1, most + 1)
        targets.append(order[:size].tolist())
        seen.append(order[size : size + 4].tolist())
    return scores, targets, seen


def frames(ranking, targets):
    reco = [
        (u, int(i), r)
        for u, top in enumerate(ranking.top)
        for r, i in enumerate(top, 1)
        if i != UNKNOWN_ITEM
    ]
    truth = [(u, i) for u, items in enumerate(targets) for i in items]
    return (
        pd.DataFrame(reco, columns=["user_id", "item_id", "rank"]),
        pd.DataFrame(truth, columns=["user_id", "item_id"]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_same_as_rectools(seed):
    rectools_metrics = quietly("rectools.metrics")
    scores, targets, seen = random_case(seed)
    ranking = rank(Fixed(scores), ask(targets, seen), K)
    reco, truth = frames(ranking, targets)
    catalogue = list(range(ITEMS))
    expected = {
        metrics.hit_rate: rectools_metrics.HitRate(k=K),
        metrics.precision: rectools_metrics.Precision(k=K),
        metrics.recall: rectools_metrics.Recall(k=K),
        metrics.mrr: rectools_metrics.MRR(k=K),
        metrics.ndcg: rectools_metrics.NDCG(k=K, divide_by_achievable=True),
    }
    for ours, theirs in expected.items():
        per_user = theirs.calc_per_user(reco, truth).sort_index().to_numpy()
        np.testing.assert_allclose(ours(ranking, K), per_user, atol=1e-9, err_msg=str(theirs))
    users = pd.DataFrame(
        [(u, i) for u, items in enumerate(seen) for i in items], columns=["user_id", "item_id"]
    )
    popularity = np.bincount(users["item_id"], minlength=ITEMS)
    popular = rectools_metrics.AvgRecPopularity(k=K).calc(reco, users)
    assert metrics.average_popularity(ranking, K, popularity) == pytest.approx(popular, abs=1e-9)
    covered = rectools_metrics.CatalogCoverage(k=K, normalize=True).calc(reco, catalogue)
    assert metrics.coverage(ranking, K, ITEMS) == pytest.approx(covered, abs=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning:numba")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore:.*unsafe cast from uint64")  # numba, in colour when it can
def test_same_as_ranx(seed):
    ranx = quietly("ranx")
    scores, targets, _ = random_case(seed)
    ranking = rank(Fixed(scores), ask(targets), ITEMS)
    qrels = ranx.Qrels({f"q{u}": {f"d{i}": 1 for i in items} for u, items in enumerate(targets)})
    run = ranx.Run(
        {f"q{u}": {f"d{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}
    )
    names = {
        "ndcg": "ndcg",
        "hit_rate": "hit_rate",
        "precision": "precision",
        "recall": "recall",
        "mrr": "mrr",
    }
    for ours, theirs in names.items():
        expected = ranx.evaluate(qrels, run, f"{theirs}@{K}")
        assert metrics.QUALITY[ours](ranking, K).mean() == pytest.approx(expected, abs=1e-9), ours
    # Ours is capped at min(|R|, K); at full depth that is the ordinary average precision.
    assert metrics.average_precision(ranking, ITEMS).mean() == pytest.approx(
        ranx.evaluate(qrels, run, "map"), abs=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_novelty_and_diversity_are_those_of_rectools(seed):
    rectools_metrics = quietly("rectools.metrics")
    scores, targets, _ = random_case(seed)
    ranking = rank(Fixed(scores), ask(targets), K)
    reco, _ = frames(ranking, targets)
    rng = np.random.default_rng(seed)
    known = rng.random((20, ITEMS)) < 0.3
    known[0] = True  # every item is known to somebody
    pairs = pd.DataFrame(np.argwhere(known), columns=["user_id", "item_id"])
    expected = rectools_metrics.MeanInvUserFreq(k=K).calc(reco, pairs)
    assert metrics.novelty(ranking, K, known.sum(0), 20) == pytest.approx(expected, abs=1e-9)
    vectors = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    class Cosine:
        def __getitem__(self, pairs):
            first, second = (np.array(column, int) for column in pairs)
            return 1 - (unit[first] * unit[second]).sum(1)

    expected = rectools_metrics.IntraListDiversity(k=K, distance_calculator=Cosine()).calc(reco)
    # The vectors are float32
    assert metrics.intra_list_distance(ranking, K, vectors) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_ordered_pairs(seed):
    scores, targets, seen = random_case(seed)
    ranking = rank(Fixed(scores), ask(targets, seen), K)
    for user, value in enumerate(metrics.auc(ranking)):
        others = [i for i in range(ITEMS) if i not in targets[user] and i not in seen[user]]
        pairs = [scores[user, t] > scores[user, o] for t in targets[user] for o in others]
        assert value == pytest.approx(np.mean(pairs), abs=1e-12)


def test_definitions_by_hand():
    scores = np.arange(ITEMS, 0, -1, dtype=np.float32)[None].repeat(2, 0)  # ranks 0, 1, 2, ...
    ranking = rank(Fixed(scores), ask([[1, 4, 20], [0]]), 5)
    assert metrics.hit_rate(ranking, 5).tolist() == [1, 1]
    assert metrics.precision(ranking, 5).tolist() == [0.4, 0.2]
    assert metrics.recall(ranking, 5) == pytest.approx([2 / 3, 1])
    assert metrics.recall_capped(ranking, 2) == pytest.approx([0.5, 1])
    assert metrics.mrr(ranking, 5) == pytest.approx([0.5, 1])
    assert metrics.average_precision(ranking, 5) == pytest.approx([(1 / 2 + 2 / 5) / 3, 1])
    assert metrics.accuracy(ranking).tolist() == [0, 1]
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert metrics.ndcg(ranking, 5)[0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(6)) / ideal)
    assert metrics.coverage(ranking, 5, ITEMS) == pytest.approx(5 / ITEMS)
    assert metrics.entropy(ranking, 5, ITEMS) == pytest.approx(np.log2(5))
    assert metrics.gini(ranking, 5, 5) == pytest.approx(0)
    assert metrics.gini(rank(Fixed(scores), ask([[1], [0]]), 1), 1, ITEMS) == pytest.approx(
        1 - 1 / ITEMS
    )
    popularity = np.full(ITEMS, 4)
    assert metrics.novelty(ranking, 5, popularity, 16) == pytest.approx(2)
    same, different = np.ones((ITEMS, 3), np.float32), np.eye(ITEMS, dtype=np.float32)
    assert metrics.intra_list_distance(ranking, 5, same) == pytest.approx(0, abs=1e-6)
    assert metrics.intra_list_distance(ranking, 5, different) == pytest.approx(1)
    assert (
        metrics.pointwise_accuracy(
            np.array([0.9, 0.5, 0.4, 0.2]), np.array([True, False, False, True])
        )
        == 0.5
    )


def test_calibration_error():
    certain = np.full((4, ITEMS), -100, np.float32)
    certain[:, 0] = 100
    assert metrics.calibration_error(rank(Fixed(certain), ask([[0]] * 4), K)) == pytest.approx(0)
    assert metrics.calibration_error(rank(Fixed(certain), ask([[1]] * 4), K)) == pytest.approx(1)
    assert metrics.calibration_error(
        rank(Fixed(certain), ask([[0], [0], [0], [1]]), K)
    ) == pytest.approx(0.25)


def given(top, probability, targets):
    """A ranking of which only lists, probabilities and targets matter."""
    top = np.array(top, np.int32)
    asked = ask(targets)
    ranks = np.array(
        [
            list(top[user]).index(target) if target in top[user] else ITEMS
            for user, items in enumerate(targets)
            for target in items
        ]
    )
    ones, candidates = np.ones(len(ranks), np.int64), np.full(len(top), ITEMS)
    return Ranking(asked, ranks, ones, candidates, top, np.array(probability, np.float64))


def test_calibration_error_by_hand():
    """Bins of a tenth: .3 and .35 share one (one of two right), .9 (right), 1.0 belongs to the last (wrong)."""
    ranking = given(
        [[0], [0], [0], [0], [0]], [0.3, 0.35, 0.9, 0.95, 1.0], [[0], [1], [0], [0], [1]]
    )
    gap = abs(1 - 0.65) + abs(2 - 2.85)  # the last bin holds .9, .95 and 1.0
    assert metrics.calibration_error(ranking) == pytest.approx(gap / 5)
    halves = abs(1 - 0.65) + abs(2 - 2.85)
    assert metrics.calibration_error(ranking, bins=2) == pytest.approx(halves / 5)
    assert metrics.calibration_error(ranking, bins=1) == pytest.approx(abs(3 - 3.5) / 5)
    quarters = given([[0], [0]], [0.1, 0.6], [[0], [0]])
    assert metrics.calibration_error(quarters) == pytest.approx((0.9 + 0.4) / 2)


def test_lists_by_hand():
    """Lists of different lengths, of which only the first k count."""
    ranking = given(
        [[0, 1, 2], [0, 2, UNKNOWN_ITEM], [3, UNKNOWN_ITEM, UNKNOWN_ITEM]], [1, 1, 1], [[0]] * 3
    )
    assert metrics.coverage(ranking, 2, 8) == 4 / 8
    assert metrics.coverage(ranking, 1, 8) == 2 / 8
    exposure = np.array([2, 1, 1, 1])  # of the first two places: 0 twice, 1, 2 and 3 once
    share = exposure / 5
    assert metrics.entropy(ranking, 2, 8) == pytest.approx(-(share * np.log2(share)).sum())
    padded = np.sort(np.array([2, 1, 1, 1, 0, 0]))
    spread = np.abs(padded[:, None] - padded[None]).sum() / (2 * 6 * padded.sum())
    assert metrics.gini(ranking, 2, 6) == pytest.approx(spread)
    # Nobody knows item 3, which counts as one; more know item 0 than there are users, which counts as all.
    popularity = np.array([20, 4, 2, 0, 0, 0])
    known = np.array([1, 4 / 8, 1, 2 / 8, 1 / 8])
    assert metrics.novelty(ranking, 2, popularity, 8) == pytest.approx(-np.log2(known).mean())
    assert metrics.average_popularity(ranking, 2, popularity) == pytest.approx(
        (20 + 4 + 20 + 2 + 0) / 5
    )


def test_distance_inside_lists_by_hand():
    vectors = np.array([[1, 0], [0, 2], [3, 3], [0, 0]], np.float32)
    ranking = given([[0, 1], [0, 2], [3, 0], [1, UNKNOWN_ITEM]], [1] * 4, [[0]] * 4)
    # A vector of zeros is like nothing; one item has no distance
    distances = [1.0, 1 - 1 / np.sqrt(2), 1.0]
    assert metrics.intra_list_distance(ranking, 2, vectors) == pytest.approx(np.mean(distances))
    assert metrics.intra_list_distance(ranking, 1, vectors) == 0.0
    three = given([[0, 1, 2]], [1], [[0]])
    assert metrics.intra_list_distance(three, 3, vectors) == pytest.approx(
        (1 + 2 * (1 - 1 / np.sqrt(2))) / 3
    )


def test_area_under_the_curve_with_hardly_any_pairs():
    """Two candidates and one of them right: one pair. All candidates right: no pair, and nothing is in the wrong order."""
    scores = np.arange(ITEMS, 0, -1, dtype=np.float32)[None]
    hidden = list(range(2, ITEMS))
    assert metrics.auc(rank(Fixed(scores), ask([[1]], [hidden]), K)).tolist() == [0.0]
    assert metrics.auc(rank(Fixed(scores), ask([[0]], [hidden]), K)).tolist() == [1.0]
    assert metrics.auc(rank(Fixed(scores), ask([[0, 1]], [hidden]), K)).tolist() == [1.0]


def test_a_probability_of_a_half_means_yes():
    labels = np.array([True, True, False, False])
    assert metrics.pointwise_accuracy(np.array([0.5, 1.2, 0.49, 0.5]), labels) == 0.75
    assert metrics.pointwise_accuracy(np.array([0.5, 0.9, 0.1, 0.2]), labels) == 1.0


def test_unknown_targets_count_as_misses_and_seen_items_are_masked():
    scores = np.arange(ITEMS, 0, -1, dtype=np.float32)[None]
    ranking = rank(Fixed(scores), ask([[UNKNOWN_ITEM, 2]], [[0, 1]]), K)
    assert metrics.recall(ranking, K).tolist() == [0.5]
    assert ranking.top[0, 0] == 2
    assert metrics.auc(ranking).tolist() == [0.5]
    kept = rank(Fixed(scores), ask([[UNKNOWN_ITEM, 2]], [[0, 1]], exclude_seen=False), K)
    assert kept.top[0, :3].tolist() == [0, 1, 2]


def test_ties_have_their_expected_rank_and_lists_show_the_first():
    ranking = rank(Fixed(np.zeros((2, ITEMS))), ask([[0], [12]]), K)
    assert ranking.ranks.tolist() == [(ITEMS - 1) / 2] * 2
    assert ranking.top[0].tolist() == list(range(K))


def test_a_model_that_knows_nothing_measures_as_a_random_one():
    """The exact values of a random order, for one held-out item of 30 candidates, wherever it is listed."""
    ranking = rank(Fixed(np.ones((3, ITEMS))), ask([[0], [12], [29]]), K)
    discounts = (1 / np.log2(np.arange(K) + 2)).sum()
    expected = {
        "ndcg": discounts / ITEMS, "hit_rate": K / ITEMS, "recall": K / ITEMS, "recall_capped": K / ITEMS,
        "precision": 1 / ITEMS, "mrr": (1 / np.arange(1, K + 1)).sum() / ITEMS, "map": (1 / np.arange(1, K + 1)).sum() / ITEMS,
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(
            metrics.QUALITY[name](ranking, K), value, rtol=1e-12, err_msg=name
        )
    assert metrics.auc(ranking).tolist() == [0.5] * 3
    assert metrics.accuracy(ranking) == pytest.approx([1 / ITEMS] * 3)
    # It says 1 / 30, and is right as often
    assert metrics.calibration_error(ranking) == pytest.approx(0)
    # Ten candidates are left
    seen = rank(Fixed(np.ones((1, ITEMS))), ask([[0]], [list(range(1, 21))]), K)
    assert metrics.hit_rate(seen, 5) == pytest.approx([0.5])


def test_two_right_items_in_one_tie_by_hand():
    """Scores 3, 2, 2, 2, 1: of the tie at ranks 1 to 3 two are right. First hit at rank 1 in 2 of 3 orders, else at 2."""
    scores = np.full((1, ITEMS), -1.0)
    scores[0, :5] = 3, 2, 2, 2, 1
    ranking = rank(Fixed(scores), ask([[1, 3]]), 5)
    assert ranking.ranks.tolist() == [2, 2]
    assert metrics.hit_rate(ranking, 2) == pytest.approx([2 / 3])
    assert metrics.hit_rate(ranking, 3) == pytest.approx([1])
    assert metrics.recall(ranking, 3) == pytest.approx([2 / 3])
    assert metrics.mrr(ranking, 5) == pytest.approx([2 / 3 / 2 + 1 / 3 / 3])
    by_order = [(1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2]
    assert metrics.average_precision(ranking, 5) == pytest.approx([np.mean(by_order)])
    assert metrics.auc(ranking) == pytest.approx([1 - (1 + 0.5) / 28])


@pytest.mark.slow
@settings(deadline=None, max_examples=40, derandomize=True)
@drawn(seed=st.integers(0, 10**6), levels=st.integers(1, 6))
def test_metrics_of_ties_are_the_means_over_random_orders(seed, levels):
    rng = np.random.default_rng(seed)
    _, targets, seen = random_case(seed)
    targets[0] = [*targets[0], UNKNOWN_ITEM]
    scores = rng.integers(levels, size=(len(targets), ITEMS)).astype(np.float32)
    asked = ask(targets, seen)
    ranking = rank(Fixed(scores), asked, K)
    measures = {
        **{name: lambda r, m=m: m(r, K) for name, m in metrics.QUALITY.items()},
        "auc": metrics.auc,
    }
    orders = [rank(Fixed(scores + rng.permuted(np.tile(np.arange(ITEMS) / 99, (len(targets), 1)), axis=1)), asked, K)
              for _ in range(400)]  # fmt: skip
    for name, measure in measures.items():
        values = np.array([measure(order).mean() for order in orders])
        error = values.std() / np.sqrt(len(values))
        assert measure(ranking).mean() == pytest.approx(values.mean(), abs=5 * error + 1e-9), name


def test_early_stopping_and_the_report_see_a_model_that_knows_nothing_as_a_random_one(small):
    from distilrec.measure.ranking import questions
    from distilrec.report.comparison import Candidate, compare
    from distilrec.training.validation import validation_ndcg

    class Constant:
        def scores(self, histories):
            return np.full((len(histories), small.catalogue_size), 7, np.float32)

    discounts = (1 / np.log2(np.arange(10) + 2)).sum()
    for part in ("validation", "test"):
        asked = questions(small, part)
        seen = [len(np.unique(asked.histories.of(k))) for k in range(len(asked.histories))]
        expected = np.where(
            asked.targets != UNKNOWN_ITEM, discounts / (small.catalogue_size - np.array(seen)), 0
        )
        if part == "validation":
            assert validation_ndcg(Constant(), small) == pytest.approx(expected.mean())
        else:
            row = compare(small, [Candidate("constant", (Constant(),))]).row("constant")
            assert row.ndcg_by_seed[0] == pytest.approx(expected.mean())
            chance = expected * 10 / discounts  # of being among the first ten
            assert row.quality["hit_rate@10"].mean == pytest.approx(chance.mean())
            assert 0 < row.slices["head items"] < 2 * chance.max()


def test_an_unknown_item_is_a_miss_in_the_smallest_catalogue_too():
    scores = np.arange(ITEMS, 0, -1, dtype=np.float32)[None]
    ranking = rank(Fixed(scores), ask([[UNKNOWN_ITEM]]), 2 * ITEMS)
    for name, metric in metrics.QUALITY.items():
        assert metric(ranking, 2 * ITEMS).tolist() == [0], name


@settings(deadline=None)
@drawn(seed=st.integers(0, 10**6))
def test_quality_metrics_lie_between_0_and_1_and_agree(seed):
    scores, targets, seen = random_case(seed)
    ranking = rank(Fixed(scores), ask(targets, seen), K)
    values = {name: metric(ranking, K) for name, metric in metrics.QUALITY.items()}
    for name, per_user in values.items():
        assert ((per_user >= 0) & (per_user <= 1 + 1e-12)).all(), name
        assert ((per_user > 0) == (values["hit_rate"] > 0)).all(), name
    assert (values["recall_capped"] >= values["recall"] - 1e-12).all()


def test_how_many_users_are_scored_together_follows_from_the_catalogue(monkeypatch):
    assert [users_at_once(items) for items in (1, 3_883, 100_000, 10**6, 10**9)] == [
        512,
        512,
        167,
        16,
        1,
    ]
    assert all(users_at_once(items) * items <= MOST_SCORES for items in (10**3, 10**5, 3 * 10**6))
    scores, targets, seen = random_case(0)
    whole = rank(Fixed(scores), ask(targets, seen), K)
    asked_for = []

    class Counting(Fixed):
        def scores(self, histories):
            asked_for.append(len(histories))
            return super().scores(histories)

    monkeypatch.setattr(ranking_module, "MOST_SCORES", 5 * ITEMS)
    parts = rank(Counting(scores), ask(targets, seen), K)
    assert asked_for == [5, 5, 2]
    for name in ("above", "tied", "candidates", "top", "top_probability"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name


@settings(deadline=None)
@drawn(seed=st.integers(0, 10**6), depth=st.integers(0, 2 * ITEMS), levels=st.integers(1, 40))
def test_the_best_items_are_those_of_a_whole_sort(seed, depth, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(4, ITEMS)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    expected = np.full((4, depth), UNKNOWN_ITEM, np.int32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    some = np.isfinite(np.take_along_axis(scores, order, 1))
    expected[:, : order.shape[1]] = np.where(some, order, UNKNOWN_ITEM)
    assert np.array_equal(ranking_module._best(scores, depth), expected)


def test_bad_scores_are_refused():
    scores = np.zeros((1, ITEMS))
    scores[0, 3] = np.nan
    with pytest.raises(InvalidValueError, match="Fixed gave scores"):
        rank(Fixed(scores), ask([[1]]), K)


@pytest.mark.parametrize("seeds", [1, 3])
def test_how_many_resamples_are_drawn_together_changes_nothing(seeds, monkeypatch):
    values = np.random.default_rng(0).normal(0.1, 1, (seeds, 30))
    together = bootstrap(values), randomisation_test(values.mean(0))
    monkeypatch.setattr(statistics, "_DRAWN_TOGETHER", 70)
    assert (bootstrap(values), randomisation_test(values.mean(0))) == together


@pytest.mark.parametrize("seeds", [1, 3])
def test_several_metrics_have_the_intervals_of_each(seeds):
    rng = np.random.default_rng(0)
    values = {name: rng.normal(mean, 1, (seeds, 30)) for name, mean in (("a", 0.1), ("b", 9.0))}
    assert bootstrap_each(values) == {name: bootstrap(of) for name, of in values.items()}
    assert bootstrap(values["a"]) != bootstrap(values["b"])


def test_bootstrap_covers_the_mean_of_a_known_distribution():
    rng = np.random.default_rng(1)
    inside = 0
    for draw in range(60):
        interval = bootstrap(rng.normal(0.3, 1, (1, 200)), seed=draw, resamples=400)
        inside += interval.low <= 0.3 <= interval.high
    assert 50 <= inside <= 60  # 95% of 60 is 57


def test_randomisation_test_tells_noise_from_difference():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, 300)
    assert randomisation_test(noise - noise.mean()) > 0.9
    assert randomisation_test(noise - noise.mean() + 0.5) < 0.001
    difference = paired_difference("m", "a", np.ones((2, 5)), "b", np.zeros((2, 5)))
    assert difference.interval.excludes_zero
    assert difference.interval.mean == 1


def test_the_p_value_by_hand():
    """(extreme + 1) / (resamples + 1), ties count as extreme."""
    # One sign: every draw is as extreme as what was seen
    assert randomisation_test(np.array([2.0]), resamples=99) == 1.0
    assert randomisation_test(np.zeros(4), resamples=9) == 1.0
    assert randomisation_test(np.ones(40), resamples=99) == 1 / 100  # no draw has all signs alike
    assert randomisation_test(np.ones(40), resamples=199) == 1 / 200
    # Of eight patterns of signs two are as extreme as three times +1.
    assert randomisation_test(np.ones(3), resamples=20_000) == pytest.approx(0.25, abs=0.01)
    values = np.random.default_rng(0).normal(0.1, 1, 50)
    assert randomisation_test(values, seed=3) == randomisation_test(values, seed=3)
    assert randomisation_test(values, seed=3) != randomisation_test(values, seed=4)
    assert randomisation_test(values) == randomisation_test(-values)


def test_a_paired_difference_is_of_these_two_on_this_metric():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, (2, 30)), rng.normal(0.2, 1, (2, 30))
    found = paired_difference("ndcg", "one", a, "other", b)
    assert (found.metric, found.a, found.b) == ("ndcg", "one", "other")
    assert found.interval == bootstrap(a - b)
    assert found.interval.mean == pytest.approx(a.mean() - b.mean())
    assert found.p_value == randomisation_test((a - b).mean(0))
