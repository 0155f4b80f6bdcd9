"""Intervals and tests. The unit is the user; with several seeds, seeds are resampled too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4_000
# Random numbers that are drawn together: one draw for each resample costs more than what it is for.
_DRAWN_TOGETHER = 1_000_000


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
    return bootstrap_each({"": values}, seed, resamples)[""]


def bootstrap_each(
    values: Mapping[str, NDArray[np.float64]], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Do what `bootstrap` does with several metrics of the same users and seeds, by name, for
    little more than the time of one: the resamples are drawn once.
    """
    arrays = list(values.values())
    sums = np.array([*_sums_of_resamples(arrays, np.random.default_rng(seed), resamples)])
    bounds = np.quantile(sums / arrays[0].shape[1], [0.025, 0.975], axis=0).T.tolist()
    return {
        name: Interval(float(array.mean()), low, high)
        for (name, array), (low, high) in zip(values.items(), bounds, strict=True)
    }


def _sums_of_resamples(
    arrays: Sequence[NDArray[np.float64]], rng: np.random.Generator, resamples: int
) -> Iterator[list[float]]:
    """Yield the sum over the drawn users, averaged over the drawn seeds, of each resample; one for
    each array.
    """
    seeds, users = arrays[0].shape
    if seeds == 1:
        for count in _portions(resamples, users):
            for drawn in rng.integers(users, size=(count, users)):
                weights = np.bincount(drawn, minlength=users).astype(np.float64)
                yield [float((array @ weights)[0]) for array in arrays]
        return
    for _ in range(resamples):
        weights = np.bincount(rng.integers(users, size=users), minlength=users).astype(np.float64)
        chosen = rng.integers(seeds, size=seeds)
        yield [float((array[chosen] @ weights).mean()) for array in arrays]


def _portions(resamples: int, users: int) -> list[int]:
    """Return the numbers of resamples that are drawn together, which add up to all."""
    most = max(1, _DRAWN_TOGETHER // users)
    return [min(most, resamples - start) for start in range(0, resamples, most)]


def randomisation_test(
    differences: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Return the two-sided p-value that the mean difference is zero: signs of users flipped at
    random (Smucker et al. 2007, sec. 3.2).

    differences: (users,), averaged over seeds.
    """
    observed = abs(differences.mean())
    extreme = sum(
        np.count_nonzero(np.abs(means) >= observed - 1e-15)
        for means in _means_of_flipped(differences, seed, resamples)
    )
    return float(extreme + 1) / (resamples + 1)


def not_worse_test(
    differences: NDArray[np.float64], margin: float, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Return the one-sided p-value that the mean difference is -margin or lower: the signs of
    difference + margin are flipped at random.

    differences: (users,), averaged over seeds.
    """
    shifted = differences + margin
    observed = shifted.mean()
    extreme = sum(
        np.count_nonzero(means >= observed - 1e-15)
        for means in _means_of_flipped(shifted, seed, resamples)
    )
    return float(extreme + 1) / (resamples + 1)


def _means_of_flipped(
    differences: NDArray[np.float64], seed: int, resamples: int
) -> Iterator[NDArray[np.float64]]:
    """Yield the means of the differences with random signs, in portions."""
    rng, users = np.random.default_rng(seed), len(differences)
    for count in _portions(resamples, users):
        signs = rng.integers(0, 2, size=(count, users)) * 2 - 1
        yield (signs * differences).mean(axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests, corrected so that the chance of one false claim among
    them stays what it is for one (Holm 1979).
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(order)
    highest = 0.0
    for place, test in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[test]))
        corrected[test] = highest
    return corrected


def paired_difference(
    metric: str, a: str, values_a: NDArray[np.float64], b: str, values_b: NDArray[np.float64]
) -> Difference:
    """Compare two models on the same users; values: (seeds, users) each, paired by position."""
    difference = values_a - values_b
    return Difference(metric, a, b, bootstrap(difference), randomisation_test(difference.mean(0)))
