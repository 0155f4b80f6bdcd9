"""Differentially private training: what is asked for, and what it promises, as its model and its bundle record it."""

from __future__ import annotations

import warnings
from typing import Literal

import msgspec

from distilrec.errors import ConfigError


class PrivacyRecord(msgspec.Struct, frozen=True):
    """(epsilon, delta)-differential privacy of the weights: how much they may differ had one user not been there.

    unit: whose data, all rows of one user; noise_multiplier, users_per_step, users, steps, clip_norm: of the training (Abadi
    et al. 2016, algorithm 1); count_noise: noise multiplier of the item counts that the biases begin with, 0 where none were
    told.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    count_noise: float
    users_per_step: int
    users: int
    steps: int
    clip_norm: float
    unit: Literal["user"] = "user"

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:.2f}, delta {self.delta:.0e}, for all rows of one user"


class PrivateTrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """epsilon, delta: at most so much is spent; delta None is 1 / (10 users).

    clip_norm: the longest gradient of one user; users_per_step: how many are drawn on average; events: only the latest so
    many of each user are learned from; averaging: share of the mean of the weights that stays at each step.
    """

    epsilon: float = 8.0
    delta: float | None = None
    clip_norm: float = 1.0
    users_per_step: int = 512
    steps: int = 300
    learning_rate: float = 5e-3
    events: int = 50
    averaging: float = 0.95

    def __post_init__(self) -> None:
        for name in ("epsilon", "clip_norm", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"privacy.{name} is {getattr(self, name)}", fix="use more than 0", parameter=name)
        for name in ("users_per_step", "steps", "events"):
            if getattr(self, name) < 1:
                raise ConfigError(f"privacy.{name} is {getattr(self, name)}", fix="use at least 1", parameter=name)
        if self.delta is not None and not 0 < self.delta < 1:
            raise ConfigError(f"privacy.delta is {self.delta}", fix="use a small share such as 1e-5", parameter="delta")
        if not 0 <= self.averaging < 1:
            raise ConfigError(
                f"privacy.averaging is {self.averaging}", fix="use a share from 0 to below 1", parameter="averaging"
            )


def noise_of_one_release(epsilon: float, delta: float) -> float:
    """The noise, in units of the sensitivity, with which the Gaussian mechanism spends (epsilon, delta) at once."""
    from opacus.accountants.utils import get_noise_multiplier  # an extra of its own, which serving does not have

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the accountant takes logarithms of 0 on purpose
        return float(
            get_noise_multiplier(target_epsilon=epsilon, target_delta=delta, sample_rate=1.0, steps=1, accountant="prv")
        )
