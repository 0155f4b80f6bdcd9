"""The confidence sequence of two arms: against the formula of the paper, by its symmetries, and by
how often it errs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from distilrec.errors import ConfigError
from distilrec.measure import Arm, compare_arms

GROUPS = 40
counts = st.lists(st.integers(1, 50), min_size=GROUPS, max_size=GROUPS)
sums = st.lists(st.floats(0.25, 50).map(lambda x: round(x, 3)), min_size=GROUPS, max_size=GROUPS)
arms = st.builds(Arm, counts, sums)
pairs = st.tuples(arms, arms).filter(lambda pair: compare_arms(*pair).low is not None)


@settings(max_examples=30)
@drawn(pairs)
def test_the_arms_may_be_swapped_and_the_groups_shuffled(pair):
    one, other = pair
    found, swapped = compare_arms(one, other), compare_arms(other, one)
    assert (found.control, found.variant) == (swapped.variant, swapped.control)
    assert found.difference == pytest.approx(-swapped.difference)
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low))
    assert found.p_value == pytest.approx(swapped.p_value)
    order = np.random.default_rng(0).permutation(GROUPS)
    shuffled = compare_arms(Arm(*(np.array(part)[order] for part in one)), other)
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high))


@settings(max_examples=30)
@drawn(pairs, st.floats(0.01, 1000))
def test_values_may_be_in_any_unit(pair, unit):
    found = compare_arms(*pair)
    scaled = compare_arms(*(Arm(arm.answers, np.array(arm.values) * unit) for arm in pair))
    assert (scaled.low, scaled.high) == pytest.approx((found.low * unit, found.high * unit))
    assert scaled.p_value == pytest.approx(found.p_value)


@settings(max_examples=30)
@drawn(pairs, st.floats(0.5, 0.999), st.integers(1, 10**7))
def test_interval_and_p_value_say_the_same(pair, level, planned):
    found = compare_arms(*pair, level=level, planned=planned)
    assert found.low < found.difference < found.high
    assert 0 < found.p_value <= 1
    if abs(found.p_value - (1 - level)) > 1e-9:
        assert found.different == (found.p_value < 1 - level)


@settings(max_examples=30)
@drawn(pairs)
def test_more_certainty_makes_wider_intervals(pair):
    narrow, wide = (compare_arms(*pair, level=level) for level in (0.9, 0.99))
    assert wide.low < narrow.low and narrow.high < wide.high


def test_one_answer_in_a_group_is_the_formula_of_the_paper():
    rng = np.random.default_rng(1)
    values = rng.exponential(size=(2, 500)) + 0.01
    found = compare_arms(*(Arm(np.ones(500), part) for part in values), level=0.9, planned=2_000)
    alpha, rho2 = 0.1, 8.2 / 2_000  # t counts the answers of both arms
    t = 1_000
    sigma2 = t * (values.var(axis=1, ddof=1) / 500).sum()
    inner = 2 * (t * rho2 + 1) / (t**2 * rho2) * math.log(math.sqrt(t * rho2 + 1) / alpha)
    assert found.high - found.difference == pytest.approx(math.sqrt(sigma2 * inner))
    assert found.difference == pytest.approx(values[1].mean() - values[0].mean())


def test_nothing_is_claimed_before_there_is_enough():
    nothing = Arm(np.zeros(256), np.zeros(256))
    assert compare_arms(nothing, nothing).control is None
    one_click = Arm(np.eye(256)[0], np.eye(256)[0])
    found = compare_arms(Arm(np.ones(256), np.zeros(256)), one_click)
    assert (found.control, found.variant, found.difference) == (0.0, 1.0, 1.0)
    assert found.low is None and not found.different and found.p_value == 1.0
    always = Arm(np.ones(256), np.ones(256))
    assert compare_arms(always, always).low is None
    tenths = [Arm(np.full(256, n), np.full(256, n) * 0.1) for n in (3, 7)]
    assert compare_arms(*tenths).low is None  # the difference is one of rounding


def clicks(seed, lift, users=2_000, looks=15):
    """Totals at each look, (looks, arms, groups) of answers and of clicks; users differ a lot."""
    rng = np.random.default_rng(seed)
    rates, arms = rng.beta(2, 5, users), rng.integers(2, size=users)
    places = arms * 64 + rng.integers(64, size=users)
    answers = rng.poisson(rng.lognormal(-1, 1, users), (looks, users))
    clicked = rng.binomial(answers, np.minimum(rates * (1 + lift * arms), 1))
    both = [
        [np.bincount(places, part, 128).reshape(2, 64) for part in counted.cumsum(0)]
        for counted in (answers, clicked)
    ]
    return zip(*both, strict=True)


def is_called_different(seed, lift):
    return any(
        compare_arms(Arm(n[0], s[0]), Arm(n[1], s[1]), planned=10_000).different
        for n, s in clicks(seed, lift)
    )


def test_nothing_is_found_where_there_is_nothing_however_often_one_looks():
    assert sum(is_called_different(seed, 0.0) for seed in range(100)) <= 5


def test_a_real_lift_is_found():
    assert sum(is_called_different(seed, 0.3) for seed in range(20)) >= 15


@pytest.mark.parametrize(
    ("control", "options", "words"),
    [
        (Arm([1, 1], [1]), {}, "one number of each"),
        (Arm([1], [1]), {}, "at least two groups"),
        (Arm([1, -1], [1, 1]), {}, "not finite"),
        (Arm([1, 1], [1, np.nan]), {}, "not finite"),
        (Arm([1, 1], [1, 0]), {"level": 1.0}, "0.95"),
        (Arm([1, 1], [1, 0]), {"planned": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_compared(control, options, words):
    with pytest.raises(ConfigError) as refused:
        compare_arms(control, Arm([1, 1], [1, 0]), **options)
    assert words in f"{refused.value.message} {refused.value.fix}"
