"""Differentially private training: what is asked for, and what one release costs."""

from __future__ import annotations

import warnings

from distilrec.settings import Count, Part, Positive, Settings, Share


class PrivateTrainingConfig(Settings, frozen=True):
    """epsilon, delta: at most so much is spent; delta None is 1 / (10 users).

    clip_norm: the longest gradient of one user; users_per_step: how many are drawn on average; events: only the latest so
    many of each user are learned from; averaging: share of the mean of the weights that stays at each step.
    """

    epsilon: Positive = 8.0
    delta: Part | None = None
    clip_norm: Positive = 1.0
    users_per_step: Count = 512
    steps: Count = 300
    learning_rate: Positive = 5e-3
    events: Count = 50
    averaging: Share = 0.95


def noise_of_one_release(epsilon: float, delta: float) -> float:
    """The noise, in units of the sensitivity, with which the Gaussian mechanism spends (epsilon, delta) at once."""
    from opacus.accountants.utils import get_noise_multiplier  # an extra of its own, which serving does not have

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the accountant takes logarithms of 0 on purpose
        return float(
            get_noise_multiplier(target_epsilon=epsilon, target_delta=delta, sample_rate=1.0, steps=1, accountant="prv")
        )
