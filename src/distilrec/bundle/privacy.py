"""What a bundle says about differential privacy."""

from __future__ import annotations

from typing import Literal

import msgspec


class PrivacyRecord(msgspec.Struct, frozen=True):
    """(epsilon, delta)-differential privacy of the weights: how much they may differ had one user
    not been there.

    unit: whose data, all rows of one user; noise_multiplier, users_per_step, users, steps,
    clip_norm: of the training (Abadi et al. 2016, algorithm 1); count_noise: noise multiplier of
    the item counts that the biases begin with, 0 where none were told.
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
