"""Compare the two arms of an experiment, valid however often one looks and whenever one stops.

Users are split into arms by chance, and within an arm into groups by chance. A group is an
observation: the answers to its users, and what they brought (clicks, or a value). What one user
does is correlated, so single answers are no observations; groups are independent, and a service
needs two counters for each.

The interval is an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas
2024, "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics
52(6), eq. 5; the boundary is Robbins' normal mixture, 1970) around the difference of two ratios,
whose variance is that of the linearised ratio over groups (Cochran 1977, sec. 6.4). The theory is
for independent increments. Users who come again make the errors at two looks more alike than that,
and a Gaussian process with higher correlations leaves the same boundary more rarely (Slepian 1962).
`bench/ab.py` measures both.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilrec.errors import ConfigError

FEWEST_GROUPS = 30
"""Groups of each arm that must have brought something before there is an interval: with fewer the
normal approximation is poor.
"""
PLANNED = 100_000
# The ratio of time to the parameter of the mixture at which its boundary is narrowest, for 95%:
# -W(-a^2 / e) - 1 with Lambert's lower branch (Waudby-Smith et al., appendix B.2). At other levels
# it is a good choice too.
_NARROWEST = 8.2


class Arm(NamedTuple):
    """What happened in an arm, by group of users.

    answers: (groups,), recommendations given; values: (groups,), the sum of what they brought, such
    as clicks. A group without answers counts, with zeros.
    """

    answers: ArrayLike
    values: ArrayLike


class ArmComparison(msgspec.Struct, frozen=True):
    """Two arms, by what a recommendation brings.

    control, variant: the value per recommendation, None without any; difference: variant minus
    control; low, high: its interval, None where too little is known; p_value: that there is no
    difference, valid whenever it is looked at.
    """

    control: float | None
    variant: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float = 1.0

    @property
    def different(self) -> bool:
        """Whether the interval excludes that there is no difference."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def compare_arms(
    control: Arm, variant: Arm, *, level: float = 0.95, planned: int = PLANNED
) -> ArmComparison:
    """Compare two arms now; the intervals of all looks together hold with probability `level`.

    planned: recommendations in both arms at which the interval is to be narrowest, chosen before
    the experiment; it holds at any number. Users must have been assigned by chance, and their
    groups too.

    Raises ConfigError for counts that cannot be, and for a level or a plan out of range.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}", fix="give for example 0.95", parameter="level")
    if planned < 1:
        raise ConfigError(f"planned is {planned}", fix="give 1 or more", parameter="planned")
    one, other = _Ratio.of(control, "control"), _Ratio.of(variant, "variant")
    if one.mean is None or other.mean is None:
        return ArmComparison(one.mean, other.mean)
    difference, variance = other.mean - one.mean, one.variance + other.variance
    rounding = 1e-12 * (abs(one.mean) + abs(other.mean))
    if min(one.active, other.active) < FEWEST_GROUPS or variance <= rounding**2:
        return ArmComparison(one.mean, other.mean, difference)
    time = _NARROWEST * (one.answers + other.answers) / planned
    # |difference - truth|^2 <= variance (1 + 1/time) log((1 + time) / alpha^2), at all times
    bound = (1 + 1 / time) * (math.log1p(time) - 2 * math.log1p(-level))
    width = math.sqrt(variance * bound)
    exponent = difference**2 / variance / (1 + 1 / time) / 2
    p_value = min(1.0, math.exp(math.log1p(time) / 2 - exponent))
    return ArmComparison(
        one.mean, other.mean, difference, difference - width, difference + width, p_value
    )


class _Ratio(NamedTuple):
    """A ratio of two sums: its value, and its variance by the differences between groups.

    active: the number of groups with a value; answers: the denominator.
    """

    mean: float | None
    variance: float
    active: int
    answers: float

    @classmethod
    def of(cls, arm: Arm, name: str) -> _Ratio:
        answers, values = _checked(arm, name)
        total = float(answers.sum())
        if not total:
            return cls(None, 0.0, 0, 0.0)
        mean, groups = float(values.sum()) / total, len(answers)
        residuals = values - mean * answers
        variance = groups / (groups - 1) * float(residuals @ residuals) / total**2
        return cls(mean, variance, int(np.count_nonzero(values)), total)


def _checked(arm: Arm, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    answers, values = (np.asarray(part, np.float64) for part in arm)
    if answers.ndim != 1 or answers.shape != values.shape or len(answers) < 2:
        raise ConfigError(
            f"the arm {name!r} has answers {answers.shape} and values {values.shape}",
            fix="give one number of each for every group, of at least two groups",
            parameter=name,
        )
    if not (np.isfinite(answers).all() and np.isfinite(values).all()) or (answers < 0).any():
        raise ConfigError(
            f"the arm {name!r} has counts that are negative or not finite",
            fix="give the numbers of answers and the finite sums of their values",
            parameter=name,
        )
    return answers, values
