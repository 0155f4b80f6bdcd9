"""The temperature at which a softmax over a student's scores says how likely the next item is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilrec.bundle.manifest import Calibration
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset
from distilrec.errors import NothingToEvaluateError
from distilrec.measure.metrics import calibration_error
from distilrec.measure.ranking import Questions, Scorer, Tempered, questions, rank, users_at_once
from distilrec.offsets import groups_of

_MOST_USERS, _MOST_SCORES = 5_000, 2**28  # that the temperature is fitted on
_SHARPEST, _CLOSE, _STEPS = 64.0, 1e-4, 50


class _Slope(NamedTuple):
    """First and second derivative of the negative log likelihood by 1 / temperature."""

    first: float
    second: float


def calibrate(scorer: Scorer, dataset: Dataset) -> Calibration | None:
    """Return the temperature of a scorer's logits, fitted on the validation part; None where that
    has no item that could be recommended.

    At most 5,000 users, drawn at random, are asked. Items that a user has had take no part in the
    softmax, unless the log has repeats.
    """
    try:
        asked = questions(dataset, "validation")
    except NothingToEvaluateError:
        return None
    most = max(1, min(_MOST_USERS, _MOST_SCORES // asked.items))
    if most < len(asked.histories):
        drawn = np.random.default_rng(0).choice(len(asked.histories), most, replace=False)
        asked = asked.take(np.sort(drawn))
        if not (asked.targets != UNKNOWN_ITEM).any():
            return None
    temperature = 1 / _likeliest_sharpness(scorer, asked)
    after = rank(Tempered(scorer, temperature), asked, 1)
    return Calibration(
        temperature=temperature,
        users=len(asked.histories),
        targets=int((asked.targets != UNKNOWN_ITEM).sum()),
        error_before=calibration_error(rank(scorer, asked, 1)),
        error_after=calibration_error(after),
    )


def _likeliest_sharpness(scorer: Scorer, asked: Questions) -> float:
    """Return the likeliest 1 / temperature, between 1 / 64 and 64.

    The negative log likelihood is convex in it: Newton's steps, kept between two bounds that close
    in on the minimum.
    """
    low, high, sharpness = 1 / _SHARPEST, _SHARPEST, 1.0
    for _ in range(_STEPS):
        slope = _slope(scorer, asked, sharpness)
        if slope.first > 0:
            high = sharpness
        else:
            low = sharpness
        following = sharpness - slope.first / max(slope.second, 1e-12)
        if not low < following < high:
            following = float(np.sqrt(low * high))
        if abs(following - sharpness) <= _CLOSE * sharpness:
            return following
        sharpness = following
    return sharpness


def _slope(scorer: Scorer, asked: Questions, sharpness: float) -> _Slope:
    """Return the derivatives of sum_y log sum_i exp(b s_i) - b s_y by b, the sharpness: for each
    held-out item y of a user E[s] - s_y and Var[s] under the softmax.
    """
    first = second = 0.0
    for part, scores in _scored(scorer, asked):
        owners = groups_of(part.offsets)
        known = part.targets != UNKNOWN_ITEM
        targets = np.bincount(owners[known], minlength=len(scores))
        scores -= scores.max(axis=1, keepdims=True)  # those that are left out stay -inf
        shares = np.exp(np.float32(sharpness) * scores)
        scores[np.isneginf(scores)] = 0
        total = shares.sum(axis=1, dtype=np.float64)
        mean = np.einsum("ui,ui->u", shares, scores, dtype=np.float64) / total
        square = np.einsum("ui,ui,ui->u", shares, scores, scores, dtype=np.float64) / total
        own = scores[owners[known], part.targets[known]].sum(dtype=np.float64)
        first += float(targets @ mean - own)
        second += float(targets @ (square - mean**2))
    return _Slope(first, second)


def _scored(scorer: Scorer, asked: Questions) -> Iterator[tuple[Questions, NDArray[np.float32]]]:
    """Yield some questions at a time with the scores of all items, -inf for those left out."""
    step = users_at_once(asked.items)
    for start in range(0, len(asked.histories), step):
        part = asked.select(start, start + step)
        scores = np.array(scorer.scores(part.histories), np.float32)
        if asked.exclude_seen:
            scores[groups_of(part.histories.offsets), part.histories.items] = -np.inf
        yield part, scores
