"""Intervals and tests. The unit is the user; with several seeds, seeds are resampled too."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4_000


class Interval(msgspec.Struct, frozen=True):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Difference(msgspec.Struct, frozen=True):
    """a minus b on the same users: mean, 95% interval, and the p-value of the paired randomisation
    test.
    """

    metric: str
    a: str
    b: str
    interval: Interval
    p_value: float


def bootstrap(values: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of the mean (Efron & Tibshirani 1993, ch. 13); values:
    (seeds, users).
    """
    rng = np.random.default_rng(seed)
    seeds, users = values.shape
    means = np.empty(resamples)
    for draw in range(resamples):
        weights = np.bincount(rng.integers(users, size=users), minlength=users)
        means[draw] = (values[rng.integers(seeds, size=seeds)] @ weights).mean() / users
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def randomisation_test(
    differences: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Two-sided p-value that the mean difference is zero: signs of users flipped at random (Smucker
    et al. 2007, sec. 3.2).

    differences: (users,), averaged over seeds.
    """
    rng = np.random.default_rng(seed)
    observed = abs(differences.mean())
    extreme = 0
    for _ in range(resamples):
        signs = rng.integers(0, 2, size=len(differences)) * 2 - 1
        extreme += abs((signs * differences).mean()) >= observed - 1e-15
    return float(extreme + 1) / (resamples + 1)


def paired_difference(
    metric: str, a: str, values_a: NDArray[np.float64], b: str, values_b: NDArray[np.float64]
) -> Difference:
    """Compare two models on the same users; values: (seeds, users) each, paired by position."""
    difference = values_a - values_b
    return Difference(metric, a, b, bootstrap(difference), randomisation_test(difference.mean(0)))
