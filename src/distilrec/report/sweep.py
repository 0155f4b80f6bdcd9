"""Students of several sizes, with and without distillation: what their figures show.

Every claim is a test on the same users. Where one question is asked of several sizes, the p-values
of its tests are corrected after Holm, so that the chance of one false claim among the answers to
that question stays at 5%; a claim needs the 95% interval, over users and seeds, on its side too.
Sizes are chosen on the validation part; what is said of them is measured on the test part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.measure.latency import Latency
from distilrec.measure.statistics import (
    Difference,
    Interval,
    bootstrap,
    holm,
    not_worse_test,
    paired_difference,
)

LEVEL = 0.05
TEACHER, WITH, WITHOUT = "teacher", "with distillation", "without distillation"
NDCG, FOUND = "ndcg@10", "found in the first 10"
PerUser = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What one model gave to each user of a part, (seeds, users) each. slices: by the name of a
    group of held-out items, the share of a user's items of that group in the first 10, for the
    users who have such items.
    """

    validation: PerUser
    test: PerUser
    slices: Mapping[str, PerUser]


class Cost(msgspec.Struct, frozen=True):
    """What a model costs. seconds: of a training, the mean of its seeds."""

    parameters: int | None
    size: int | None
    seconds: float | None
    latency: Latency | None


class Point(msgspec.Struct, frozen=True):
    """One model of a sweep. size: 0 for the teacher; share: of the users whose rows it was trained
    on; slices: share of held-out items in the first 10.
    """

    size: int
    share: float
    arm: str
    validation: Interval
    test: Interval
    validation_by_seed: tuple[float, ...]
    test_by_seed: tuple[float, ...]
    slices: dict[str, Interval]
    cost: Cost


class Claim(msgspec.Struct, frozen=True):
    """A model minus another one, on the test part, as one of several answers to a question.

    p_value: corrected after Holm for all of them; margin: how much worse still counts as good, None
    where the question is which one is better. slice: of the held-out items, "" for all.
    """

    size: int
    other_size: int
    arm: str
    share: float
    difference: Difference
    p_value: float
    margin: float | None = None
    slice: str = ""

    @property
    def better(self) -> bool:
        """Whether the first model is shown to be better."""
        return self.p_value < LEVEL and self.difference.interval.low > 0

    @property
    def worse(self) -> bool:
        """Whether the first model is shown to be worse."""
        return self.p_value < LEVEL and self.difference.interval.high < 0

    @property
    def as_good(self) -> bool:
        """Whether the first model is shown to be worse by less than the margin."""
        low = self.difference.interval.low
        return self.margin is not None and self.p_value < LEVEL and low > -self.margin


class Choice(msgspec.Struct, frozen=True):
    """The smallest student whose validation NDCG@10 is close enough to the best. section: of the
    configuration.
    """

    size: int
    arm: str
    validation: float
    best: float
    section: dict[str, str | int | float | bool]


class Sweep(msgspec.Struct, frozen=True):
    """Everything that a sweep has found. The questions of which the claims are the answers:

    gains: is the student better with distillation? one for each size and share of the users.
    replacements: with distillation, is a smaller student as good as a larger one without?
    to_teacher: is a student as good as the teacher? with and without distillation.
    slice_gains: is the student better with distillation for some users, or some items?
    leads: is the teacher better than the student without distillation?
    missing: trainings that the limit of time left out.
    """

    dataset: str
    split: str
    users: int
    kind: str
    unit: str
    seeds: int
    loss: float
    missing: int
    points: tuple[Point, ...]
    slice_sizes: dict[str, int]
    gains: tuple[Claim, ...]
    replacements: tuple[Claim, ...]
    to_teacher: tuple[Claim, ...]
    slice_gains: tuple[Claim, ...]
    leads: tuple[Claim, ...]
    choice: Choice

    @property
    def share(self) -> float:
        """The largest share of the users, of which all that names no share is said."""
        return max(point.share for point in self.students())

    @property
    def teacher(self) -> Point:
        return next(point for point in self.points if point.arm == TEACHER)

    def students(self) -> list[Point]:
        """Return the points that are no teacher."""
        return [point for point in self.points if point.arm != TEACHER]

    def curve(self, arm: str, share: float | None = None) -> list[Point]:
        """Return the students with or without distillation, the smallest first."""
        wanted = self.share if share is None else share
        points = [point for point in self.points if point.arm == arm and point.share == wanted]
        return sorted(points, key=lambda point: point.size)

    def sizes(self) -> list[int]:
        return [point.size for point in self.curve(WITH)]

    def shares(self) -> list[float]:
        return sorted({point.share for point in self.students()})

    def point(self, size: int, arm: str) -> Point:
        """Return a student at the largest share of the users."""
        return next(point for point in self.curve(arm) if point.size == size)


Key = tuple[int, float, str]  # size, share, arm
TEACHER_KEY: Key = (0, 1.0, TEACHER)


def point_of(key: Key, measured: Measured, cost: Cost) -> Point:
    """Return a model with its intervals."""
    return Point(
        *key,
        validation=bootstrap(measured.validation),
        test=bootstrap(measured.test),
        validation_by_seed=tuple(measured.validation.mean(1).tolist()),
        test_by_seed=tuple(measured.test.mean(1).tolist()),
        slices={name: bootstrap(found) for name, found in measured.slices.items()},
        cost=cost,
    )


@dataclass(frozen=True)
class Findings:
    """The answers to the questions of a sweep, named as in `Sweep`."""

    gains: tuple[Claim, ...]
    replacements: tuple[Claim, ...]
    to_teacher: tuple[Claim, ...]
    slice_gains: tuple[Claim, ...]
    leads: tuple[Claim, ...]


def findings(teacher: Measured, students: Mapping[Key, Measured], loss: float) -> Findings:
    """Return what the figures show. loss: share of the other model's NDCG@10 that may be lost where
    a student is as good.
    """
    share = max(share for _, share, _ in students)
    sizes = sorted({size for size, of, _ in students if of == share})
    pairs = sorted({(size, of) for size, of, _ in students})
    main = {arm: {size: students[size, share, arm] for size in sizes} for arm in (WITH, WITHOUT)}
    gains = [
        _difference(students[size, of, WITH].test, students[size, of, WITHOUT].test)
        for size, of in pairs
    ]
    smaller = [(small, large) for small, large in product(sizes, sizes) if small < large]
    arms = list(product(sizes, (WITH, WITHOUT)))
    slices = list(product(main[WITH][sizes[0]].slices, sizes))
    lead = [_difference(teacher.test, main[WITHOUT][size].test) for size in sizes]
    of_slices = [
        _difference(main[WITH][size].slices[name], main[WITHOUT][size].slices[name], FOUND)
        for name, size in slices
    ]
    return Findings(
        gains=tuple(
            Claim(size, size, WITH, of, difference, p)
            for (size, of), (difference, p) in zip(pairs, _better(gains), strict=True)
        ),
        replacements=_as_good(
            [(small, large, WITH, share) for small, large in smaller],
            lambda small, large, arm: (main[WITH][small].test, main[WITHOUT][large].test),
            loss,
        ),
        to_teacher=_as_good(
            [(size, 0, arm, share) for size, arm in arms],
            lambda size, _, arm: (main[arm][size].test, teacher.test),
            loss,
        ),
        slice_gains=tuple(
            Claim(size, size, WITH, share, difference, p, slice=name)
            for (name, size), (difference, p) in zip(slices, _better(of_slices), strict=True)
        ),
        leads=tuple(
            Claim(0, size, TEACHER, share, difference, p)
            for size, (difference, p) in zip(sizes, _better(lead), strict=True)
        ),
    )


def _difference(a: PerUser, b: PerUser, metric: str = NDCG) -> Difference:
    """Return a minus b; a teacher of several students stands for each of their seeds."""
    seeds = max(len(a), len(b))
    a, b = (np.broadcast_to(values, (seeds, values.shape[1])) for values in (a, b))
    return paired_difference(metric, "a", a, "b", b)


def _better(differences: Sequence[Difference]) -> list[tuple[Difference, float]]:
    """Return the answers to which one is better, with their corrected p-values."""
    corrected = holm([difference.p_value for difference in differences])
    return list(zip(differences, corrected, strict=True))


def _as_good(
    asked: Sequence[tuple[int, int, str, float]],
    values: Callable[[int, int, str], tuple[PerUser, PerUser]],
    loss: float,
) -> tuple[Claim, ...]:
    """Return the answers to whether a model is as good as another one.

    asked: size, other size, arm and share of each; values: what the two gave to each user.
    """
    differences, p_values, margins = [], [], []
    for size, other, arm, _ in asked:
        a, b = values(size, other, arm)
        margins.append(loss * float(b.mean()))
        differences.append(_difference(a, b))
        p_values.append(not_worse_test(a.mean(0) - b.mean(0), margins[-1]))
    return tuple(
        Claim(*compared, difference, p, margin)
        for compared, difference, p, margin in zip(
            asked, differences, holm(p_values), margins, strict=True
        )
    )


def choose(points: Sequence[Point], loss: float) -> Point:
    """Return the smallest student whose mean validation NDCG@10 is at most `loss` below the best;
    of two of one size the better one.
    """
    best = max(point.validation.mean for point in points)
    close = [point for point in points if point.validation.mean >= (1 - loss) * best]
    return min(close, key=lambda point: (point.size, -point.validation.mean))
