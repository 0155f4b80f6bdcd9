"""Differentially private training: what is asked for, and what one release costs."""

from __future__ import annotations

import warnings

from distilrec.settings import Count, Part, Positive, Settings, Share


class PrivateTrainingConfig(Settings, frozen=True):
    """Differentially private training of the student, by DP-SGD with users as the unit."""

    epsilon: Positive = 8.0
    """Maximum of epsilon that is spent."""
    delta: Part | None = None
    """Maximum of delta that is spent; 1 / (10 users) by default."""
    clip_norm: Positive = 1.0
    """Longest gradient of one user."""
    users_per_step: Count = 512
    """Users drawn in a step, on average."""
    steps: Count = 300
    """Number of steps."""
    learning_rate: Positive = 5e-3
    """Learning rate of all steps."""
    events: Count = 50
    """Latest events of a user that are learned from."""
    averaging: Share = 0.95
    """Share that stays, at each step, in the moving average of the weights."""


def noise_of_one_release(epsilon: float, delta: float) -> float:
    """Return the noise, in units of the sensitivity, with which the Gaussian mechanism spends
    (epsilon, delta) together.
    """
    # An extra of its own, which serving does not have
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the accountant takes logarithms of 0 on purpose
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=1.0,
                steps=1,
                accountant="prv",
            )
        )
