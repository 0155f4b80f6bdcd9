"""Training with differential privacy, and votes of private teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.privacy.accounting import PrivateTrainingConfig
    from distilrec.privacy.dpsgd import train_private
    from distilrec.privacy.votes import VoteConfig, private_votes

_MODULES = {
    "PrivateTrainingConfig": "accounting",
    "VoteConfig": "votes",
    "private_votes": "votes",
    "train_private": "dpsgd",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "PrivateTrainingConfig",
    "VoteConfig",
    "private_votes",
    "train_private",
]
