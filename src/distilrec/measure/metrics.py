"""Every metric with its definition. Quality metrics are (users,) float64: their mean is the metric.

R is the set of held-out items of a user, rank counts from 0, K is the length of the list. Where
items have equal scores, a metric is its expected value over all orders of these: a model that knows
nothing measures as a random one does. Cross-checked against `rectools` and `ranx`, and against
random orders of ties, in `tests/measure/test_metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM
from distilrec.measure.ranking import Ranking

PerUser = NDArray[np.float64]


def _sum_per_user(ranking: Ranking, values: NDArray[np.float64]) -> PerUser:
    total: PerUser = np.bincount(ranking.owners(), weights=values, minlength=ranking.users).astype(
        np.float64
    )
    return total


def _relevant(ranking: Ranking) -> PerUser:
    return np.diff(ranking.questions.offsets).astype(np.float64)


def _hits(ranking: Ranking, k: int) -> PerUser:
    """Return the expected number of items of R among the first K."""
    return _sum_per_user(ranking, ranking.chances(k).sum(1))


def _first_hit(ranking: Ranking, k: int) -> PerUser:
    """Return the probability that the first item of R stands at each of the first k ranks, (users,
    k).

    It is one of the m items of R in the best group of ties that has any. With t items in that
    group, it stands at place j of the group with probability m / (t - j) where none stood before.
    """
    starts, sizes = ranking.questions.offsets[:-1], np.diff(ranking.questions.offsets)
    best = np.minimum.reduceat(ranking.above, starts)
    in_best = ranking.known & (ranking.above == np.repeat(best, sizes))
    m = _sum_per_user(ranking, in_best.astype(np.float64))  # 0 where all of R is unknown
    t = np.maximum.reduceat(np.where(in_best, ranking.tied, 1), starts)
    first_hit = np.zeros((ranking.users, k))
    none_before = np.ones(ranking.users)
    for j in range(k):
        left = t - j
        here = none_before * np.divide(m, left, out=np.zeros(ranking.users), where=left > 0)
        inside = best + j < k
        first_hit[inside, best[inside] + j] = here[inside]
        none_before = none_before - here
    return first_hit


def hit_rate(ranking: Ranking, k: int) -> PerUser:
    """1 where at least one item of R is among the first K."""
    hits: PerUser = _first_hit(ranking, k).sum(1)
    return hits


def precision(ranking: Ranking, k: int) -> PerUser:
    """|first K and R| / K."""
    share: PerUser = _hits(ranking, k) / k
    return share


def recall(ranking: Ranking, k: int) -> PerUser:
    """|first K and R| / |R|."""
    share: PerUser = _hits(ranking, k) / _relevant(ranking)
    return share


def recall_capped(ranking: Ranking, k: int) -> PerUser:
    """|first K and R| / min(|R|, K)."""
    share: PerUser = _hits(ranking, k) / np.minimum(_relevant(ranking), k)
    return share


def ndcg(ranking: Ranking, k: int) -> PerUser:
    """DCG / ideal DCG; DCG sums 1 / log2(rank + 2) over hits, the ideal has min(|R|, K) of them
    (Järvelin 2002, binary).
    """
    discounts = 1 / np.log2(np.arange(k) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    gains = _sum_per_user(ranking, ranking.chances(k) @ discounts)
    share: PerUser = gains / ideal[np.minimum(_relevant(ranking), k).astype(np.int64)]
    return share


def mrr(ranking: Ranking, k: int) -> PerUser:
    """1 / (rank + 1) of the best ranked item of R, 0 past K."""
    reciprocal: PerUser = _first_hit(ranking, k) @ (1 / np.arange(1, k + 1))
    return reciprocal


def average_precision(ranking: Ranking, k: int) -> PerUser:
    """Mean over R of the precision at each hit's rank, over min(|R|, K): the MAP@K of ranking
    campaigns, capped.

    An item at place j of its group of t ties has (m - 1) j / (t - 1) of the group's other m - 1
    items of R before it.
    """
    better, level = _companions(ranking)
    rank_in_group = np.arange(k) - ranking.above[:, None]  # inside the group, (targets, k)
    before = (
        better[:, None]
        + (level - 1)[:, None] * rank_in_group / np.maximum(ranking.tied - 1, 1)[:, None]
    )
    precisions = (ranking.chances(k) * (1 + before) / np.arange(1, k + 1)).sum(1)
    mean: PerUser = _sum_per_user(ranking, precisions) / np.minimum(_relevant(ranking), k)
    return mean


def _companions(ranking: Ranking) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for every target, how many of the user's targets have a higher score, and how many
    the same, with itself.
    """
    keys = ranking.owners() * (ranking.above.max(initial=0) + 1) + ranking.above
    ordered = np.sort(keys)
    low, high = np.searchsorted(ordered, keys), np.searchsorted(ordered, keys, side="right")
    return low - ranking.questions.offsets[:-1][ranking.owners()], high - low


def auc(ranking: Ranking) -> PerUser:
    """Share of pairs (item of R, other candidate) in the right order; an unknown item of R loses
    every pair.
    """
    better, level = _companions(ranking)
    others = ranking.candidates - _sum_per_user(ranking, ranking.known.astype(np.float64))
    # Of the others, a tie is half of one
    above = ranking.above - better + (ranking.tied - level) / 2
    wrong = _sum_per_user(ranking, np.where(ranking.known, above, others[ranking.owners()]))
    pairs = _relevant(ranking) * others
    lost: PerUser = np.divide(wrong, pairs, out=np.zeros_like(wrong), where=pairs > 0)
    return np.subtract(1.0, lost)


def accuracy(ranking: Ranking) -> PerUser:
    """1 where the first item is in R (top-1 accuracy)."""
    return hit_rate(ranking, 1)


QUALITY: dict[str, Callable[[Ranking, int], PerUser]] = {
    "ndcg": ndcg,
    "hit_rate": hit_rate,
    "recall": recall,
    "recall_capped": recall_capped,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
}


def pointwise_accuracy(probabilities: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Share of pairs where (probability >= .5) equals the label; both (pairs,)."""
    return float(((probabilities >= 0.5) == labels).mean())


def coverage(ranking: Ranking, k: int, catalogue_size: int) -> float:
    """Share of the catalogue that appears in at least one list."""
    shown = ranking.top[:, :k]
    return len(np.unique(shown[shown != UNKNOWN_ITEM])) / catalogue_size


def _exposure(ranking: Ranking, k: int, catalogue_size: int) -> NDArray[np.float64]:
    shown = ranking.top[:, :k]
    return np.bincount(shown[shown != UNKNOWN_ITEM], minlength=catalogue_size).astype(np.float64)


def gini(ranking: Ranking, k: int, catalogue_size: int) -> float:
    """Gini index of how often each item is shown: 0 equal, near 1 when few items get everything."""
    exposure = np.sort(_exposure(ranking, k, catalogue_size))
    weights = 2 * np.arange(1, catalogue_size + 1) - catalogue_size - 1
    return float((weights * exposure).sum() / (catalogue_size * exposure.sum()))


def entropy(ranking: Ranking, k: int, catalogue_size: int) -> float:
    """Shannon entropy of the exposure in bits; log2(catalogue) is the most."""
    share = _exposure(ranking, k, catalogue_size)
    share = share[share > 0] / share.sum()
    return float(-(share * np.log2(share)).sum())


def novelty(ranking: Ranking, k: int, popularity: NDArray[np.int64], users: int) -> float:
    """Mean self-information -log2(share of users who know the item) of shown items (Zhou et al.
    2010), in bits.
    """
    shown = ranking.top[:, :k]
    share = np.maximum(popularity[shown[shown != UNKNOWN_ITEM]], 1) / users
    return float(-np.log2(np.minimum(share, 1)).mean())


def average_popularity(ranking: Ranking, k: int, popularity: NDArray[np.int64]) -> float:
    """Mean number of training interactions of shown items."""
    shown = ranking.top[:, :k]
    return float(popularity[shown[shown != UNKNOWN_ITEM]].mean())


def intra_list_distance(ranking: Ranking, k: int, vectors: NDArray[np.float32]) -> float:
    """Return the mean over users of the mean pairwise cosine distance of the shown items; vectors:
    (items, dim).
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    distances = []
    for shown in ranking.top[:, :k]:
        directions = unit[shown[shown != UNKNOWN_ITEM]]
        if len(directions) > 1:
            pairs = len(directions) * (len(directions) - 1)
            distances.append(
                1 - ((directions @ directions.T).sum() - (directions * directions).sum()) / pairs
            )
    return float(np.mean(distances)) if distances else 0.0


def calibration_error(ranking: Ranking, bins: int = 10) -> float:
    """Return the expected calibration error of the first item's probability (Guo et al. 2017, eq.
    3), equal-width bins.
    """
    confidence, right = ranking.top_probability, accuracy(ranking)
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    gap = np.abs(np.bincount(bin_of, right, bins) - np.bincount(bin_of, confidence, bins))
    return float(gap.sum() / count.sum())
