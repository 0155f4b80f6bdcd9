"""What a recommender answers with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple


class Recommendation(NamedTuple):
    """An item and its score: a logit, higher is better; `Recommender.probabilities` makes it a
    probability.
    """

    item_id: str
    score: float


# The fast way to make one of a pair.
as_recommendation: Callable[[tuple[str, float]], Recommendation] = partial(
    tuple.__new__, Recommendation
)


class ValuedItem(NamedTuple):
    """An item with its score, how likely it is to be the user's next one, and the expected worth of
    showing it, `value`, which is the sum of `parts`: probability x weight x number, by attribute.
    """

    item_id: str
    score: float
    probability: float
    value: float
    parts: dict[str, float]


class UpdateResult(NamedTuple):
    """How many events changed a state, and how many were on unknown items and changed nothing."""

    applied: int
    unknown_items: int


class Contribution(NamedTuple):
    """What one past event did for a score: the score minus the score had the event not happened.

    place: which of the remembered events of the user it was, from 0, the oldest.
    """

    item_id: str
    contribution: float
    place: int


class Item(NamedTuple):
    """What is known about one item, for people and for filters."""

    item_id: str
    title: str
    attributes: dict[str, float | list[str]]
    available: bool
    in_training: bool
