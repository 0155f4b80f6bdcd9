"""Every metric with its definition. Quality metrics are (users,) float64: their mean is the metric.

R is the set of held-out items of a user, rank counts from 0, K is the length of the list. Cross-checked against
`rectools` and `ranx` in `tests/test_metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM
from distilrec.evaluate.ranking import Ranking

PerUser = NDArray[np.float64]


def _sum_per_user(ranking: Ranking, values: NDArray[np.float64]) -> PerUser:
    total: PerUser = np.bincount(ranking.owners(), weights=values, minlength=ranking.users).astype(np.float64)
    return total


def _relevant(ranking: Ranking) -> PerUser:
    return np.diff(ranking.asked.offsets).astype(np.float64)


def _hits(ranking: Ranking, k: int) -> PerUser:
    return _sum_per_user(ranking, (ranking.ranks < k).astype(np.float64))


def hit_rate(ranking: Ranking, k: int) -> PerUser:
    """1 where at least one item of R is among the first K."""
    return (_hits(ranking, k) > 0).astype(np.float64)


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
    """DCG / ideal DCG; DCG sums 1 / log2(rank + 2) over hits, the ideal has min(|R|, K) of them (Järvelin 2002, binary)."""
    gains = np.where(ranking.ranks < k, 1 / np.log2(ranking.ranks + 2), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
    share: PerUser = _sum_per_user(ranking, gains) / ideal[np.minimum(_relevant(ranking), k).astype(np.int64)]
    return share


def mrr(ranking: Ranking, k: int) -> PerUser:
    """1 / (rank + 1) of the best ranked item of R, 0 past K."""
    best = np.minimum.reduceat(ranking.ranks, ranking.asked.offsets[:-1])
    return np.where(best < k, 1 / (best + 1.0), 0.0)


def average_precision(ranking: Ranking, k: int) -> PerUser:
    """Mean over R of the precision at each hit's rank, over min(|R|, K): the MAP@K of ranking campaigns, capped."""
    hits = np.zeros((ranking.users, k))
    inside = ranking.ranks < k
    hits[ranking.owners()[inside], ranking.ranks[inside]] = 1.0
    precisions = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    mean: PerUser = (precisions * hits).sum(1) / np.minimum(_relevant(ranking), k)
    return mean


def auc(ranking: Ranking) -> PerUser:
    """Share of pairs (item of R, other candidate) in the right order; an unknown item of R loses every pair."""
    relevant = _relevant(ranking)
    order = np.lexsort((ranking.ranks, ranking.owners()))
    place = np.arange(len(order)) - np.repeat(ranking.asked.offsets[:-1], np.diff(ranking.asked.offsets))
    known = ranking.asked.targets != UNKNOWN_ITEM
    others = ranking.candidates - _sum_per_user(ranking, known.astype(np.float64))
    above = np.minimum(ranking.ranks[order] - place, np.repeat(others, np.diff(ranking.asked.offsets)))
    wrong = _sum_per_user(ranking, above.astype(np.float64))
    pairs = relevant * others
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
    """Mean self-information -log2(share of users who know the item) of shown items (Zhou et al. 2010), in bits."""
    shown = ranking.top[:, :k]
    share = np.maximum(popularity[shown[shown != UNKNOWN_ITEM]], 1) / users
    return float(-np.log2(np.minimum(share, 1)).mean())


def average_popularity(ranking: Ranking, k: int, popularity: NDArray[np.int64]) -> float:
    """Mean number of training interactions of shown items."""
    shown = ranking.top[:, :k]
    return float(popularity[shown[shown != UNKNOWN_ITEM]].mean())


def intra_list_distance(ranking: Ranking, k: int, vectors: NDArray[np.float32]) -> float:
    """Mean over users of the mean pairwise cosine distance of the shown items; vectors: (items, dim)."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    distances = []
    for shown in ranking.top[:, :k]:
        own = unit[shown[shown != UNKNOWN_ITEM]]
        if len(own) > 1:
            pairs = len(own) * (len(own) - 1)
            distances.append(1 - ((own @ own.T).sum() - (own * own).sum()) / pairs)
    return float(np.mean(distances)) if distances else 0.0


def calibration_error(ranking: Ranking, bins: int = 10) -> float:
    """Expected calibration error of the first item's probability (Guo et al. 2017, eq. 3), equal-width bins."""
    confidence, right = ranking.top_probability, accuracy(ranking)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    gap = np.abs(np.bincount(place, right, bins) - np.bincount(place, confidence, bins))
    return float(gap.sum() / count.sum())
