"""Full-catalogue ranking of held-out items: what every metric is computed from. Needs
numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories, Part
from distilrec.errors import InvalidValueError, NothingToEvaluateError
from distilrec.offsets import groups_of, offsets_of, take_rows
from distilrec.targets import Roles, hidden_items

_MOST_USERS = 512
MOST_SCORES = 2**24


class Scorer(Protocol):
    """Anything that scores the whole catalogue for some histories."""

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32, higher is better, finite; row k belongs to user k
        of the histories.
        """
        ...


@dataclass(frozen=True)
class Tempered:
    """A scorer whose scores are divided by a temperature."""

    scorer: Scorer
    temperature: float

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return the scores of all items, (batch, items) float32."""
        scores = self.scorer.scores(histories)
        tempered: NDArray[np.float32] = scores / np.float32(self.temperature)
        return tempered


def users_at_once(items: int) -> int:
    """Return how many users are scored together over a catalogue of this size: at most 512, and at
    most 2^24 scores, so that what a ranking holds does not grow with the catalogue.

    An array of 2^24 scores has 64 MiB; the scorer's, a copy and what is computed from it take about
    250 MiB. Past 2^24 items it is one user.
    """
    return max(1, min(_MOST_USERS, MOST_SCORES // items))


@dataclass(frozen=True)
class Questions:
    """Who is asked for in a part, with what history, and what the right answers are.

    offsets: (users + 1,); targets: (n,) int32, the held-out items of one user after the other,
    without repetitions; UNKNOWN_ITEM stands for items outside the catalogue, which no model can
    predict and which count as misses.
    repeated: held-out events left out because the item was already in the history and seen items
    are masked. items: size of the catalogue. roles: what the event types mean; items that a user
    does not want to see are masked.
    """

    histories: Histories
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    exclude_seen: bool
    repeated: int
    items: int
    roles: Roles | None = None

    def users_of_targets(self) -> NDArray[np.int64]:
        """Return the user of every target, as the data set numbers them, (targets,)."""
        return self.histories.users[groups_of(self.offsets)]

    def select(self, start: int, stop: int) -> Questions:
        """Return the questions about the users from start to stop."""
        low, high = self.offsets[start], self.offsets[min(stop, len(self.histories))]
        return Questions(
            self.histories.select(start, stop),
            self.offsets[start : stop + 1] - low,
            self.targets[low:high],
            self.exclude_seen,
            self.repeated,
            self.items,
            self.roles,
        )

    def take(self, users: NDArray[np.int64]) -> Questions:
        """Return the questions about these users, given by their places, in this order."""
        offsets, targets = take_rows(self.offsets, users)
        return replace(
            self,
            histories=self.histories.take(users),
            offsets=offsets,
            targets=self.targets[targets],
        )


def questions(dataset: Dataset, part: Part, exclude_seen: bool | None = None) -> Questions:
    """Return the evaluation questions of a part; `exclude_seen=None` masks seen items unless the
    log has repeats. Only events that are to be predicted are asked for.

    Raises NothingToEvaluateError when no held-out item is in the catalogue.
    """
    exclude = not dataset.info.repeats if exclude_seen is None else exclude_seen
    starts, stops = dataset.part_bounds(part)
    users, targets, repeated = [], [], 0
    counted = None if dataset.roles is None else dataset.is_target()
    for user in np.flatnonzero(stops > starts):
        held_out = dataset.items[starts[user] : stops[user]]
        if counted is not None:
            held_out = held_out[counted[starts[user] : stops[user]]]
        distinct = held_out[np.sort(np.unique(held_out, return_index=True)[1])]
        if exclude:
            fresh = distinct[
                ~np.isin(distinct, dataset.items[dataset.offsets[user] : starts[user]])
            ]
            # Unknown items are never "seen": one unknown item says nothing about another.
            fresh = np.concatenate(
                [fresh[fresh != UNKNOWN_ITEM], distinct[distinct == UNKNOWN_ITEM]]
            )
            repeated += len(distinct) - len(fresh)
            distinct = fresh
        if len(distinct):
            users.append(int(user))
            targets.append(distinct)
    flat = np.concatenate(targets) if targets else np.zeros(0, np.int32)
    if not (flat != UNKNOWN_ITEM).any():
        raise NothingToEvaluateError(
            f"the {part} part has no item that any model could recommend: all are unknown, "
            "already seen, or there are none",
            fix="give more data, a larger share for this part, or an item table with the new items",
        )
    chosen = np.array(users, np.int64)
    return Questions(
        dataset.histories(chosen, starts[chosen]),
        offsets_of([len(items) for items in targets]),
        flat.astype(np.int32),
        exclude,
        repeated,
        dataset.catalogue_size,
        dataset.roles,
    )


@dataclass(frozen=True)
class Ranking:
    """How a model ranked the held-out items.

    above: (targets,) int64, how many items have a higher score, the catalogue size where the item
    is unknown; tied: (targets,) int64, how many have the same score, with the item itself. A model
    says nothing about the order of ties, so every order is as likely: metrics are expected values
    over it, and so is the rank.
    candidates: (users,) int64, how many items were ranked; top: (users, depth) int32, the best
    items in order, of equal ones the one listed first, UNKNOWN_ITEM where there were fewer;
    top_probability: (users,) float64, softmax probability of the first item.
    """

    questions: Questions
    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    candidates: NDArray[np.int64]
    top: NDArray[np.int32]
    top_probability: NDArray[np.float64]

    @property
    def users(self) -> int:
        return len(self.questions.histories)

    @property
    def ranks(self) -> NDArray[np.float64]:
        """The expected rank of every target, (targets,), from 0: above + (tied - 1) / 2."""
        expected: NDArray[np.float64] = self.above + (self.tied - 1) / 2
        return expected

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which targets are in the catalogue, (targets,)."""
        known: NDArray[np.bool_] = self.questions.targets != UNKNOWN_ITEM
        return known

    def chances(self, k: int) -> NDArray[np.float64]:
        """Return the probability of each of the first k ranks for a target, (targets, k)."""
        places = np.arange(k)
        first, tied = self.above[:, None], self.tied[:, None]
        chances: NDArray[np.float64] = (
            (places >= first) & (places < first + tied) & self.known[:, None]
        ) / tied
        return chances

    def owners(self) -> NDArray[np.int64]:
        """Return the user (0..users) of every target, (targets,)."""
        return groups_of(self.questions.offsets)


def rank(scorer: Scorer, questions: Questions, depth: int = 10) -> Ranking:
    """Rank the catalogue for every question.

    depth: how many of the best items are kept; 0 keeps none, and spares their sorting.
    Raises InvalidValueError when the scores have the wrong shape or are not finite.
    """
    above, tied, candidates, top, probability = [], [], [], [], []
    step = users_at_once(questions.items)
    for start in range(0, len(questions.histories), step):
        part = questions.select(start, start + step)
        histories = part.histories
        scores = np.array(scorer.scores(histories), np.float32)
        if scores.ndim != 2 or len(scores) != len(histories) or not np.isfinite(scores).all():
            raise InvalidValueError(
                f"{type(scorer).__name__} gave scores of shape {scores.shape} for {len(histories)} "
                "users, or NaN or infinity",
                fix="return one finite float per user and item",
            )
        if questions.exclude_seen:
            scores[groups_of(histories.offsets), histories.items] = -np.inf
        elif questions.roles is not None:
            _mask_unwanted(scores, histories, questions.roles)
        higher, equal = standing(scores, groups_of(part.offsets), part.targets)
        above.append(higher)
        tied.append(equal)
        candidates.append(np.isfinite(scores).sum(1))
        top.append(_best(scores, depth))
        probability.append(np.array([_highest_probability(row) for row in scores]))
    return Ranking(questions, *map(np.concatenate, (above, tied, candidates, top, probability)))


def _mask_unwanted(scores: NDArray[np.float32], histories: Histories, roles: Roles) -> None:
    """Give the lowest score to the items that each user does not want to see. scores: (users,
    items).
    """
    for k, (start, stop) in enumerate(pairwise(histories.offsets)):
        hidden = hidden_items(histories.items[start:stop], histories.events[start:stop], roles)
        scores[k, hidden] = -np.inf


def _highest_probability(scores: NDArray[np.float32]) -> np.float64:
    """Return the softmax probability of the best of one user's scores, (items,)."""
    probability: np.float64 = 1 / np.exp(scores.astype(np.float64) - scores.max()).sum()
    return probability


def _best(scores: NDArray[np.float32], depth: int) -> NDArray[np.int32]:
    """Return the best items in order, (users, depth), UNKNOWN_ITEM where there are fewer."""
    best = np.full((len(scores), depth), UNKNOWN_ITEM, np.int32)
    columns = min(depth, scores.shape[1])
    for user, row in enumerate(scores if columns else ()):
        lowest = np.partition(row, -columns)[-columns]
        # With all that are level with the last one, of which the first ones are kept
        good = np.flatnonzero((row >= lowest) & (row > -np.inf))
        order = good[np.argsort(-row[good], kind="stable")][:columns]
        best[user, : len(order)] = order
    return best


def standing(
    scores: NDArray[np.float32], owners: NDArray[np.int64], targets: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many items stand above each target, and how many are level with it, (targets,)
    int64 each: the whole catalogue and the item alone for an unknown one.

    scores: (users, items); owners: (targets,), the row of each target.
    """
    above, tied = np.full(len(targets), scores.shape[1], np.int64), np.ones(len(targets), np.int64)
    for index, (owner, target) in enumerate(zip(owners, targets, strict=True)):
        if target != UNKNOWN_ITEM:
            row, score = scores[owner], scores[owner, target]
            above[index], tied[index] = (
                np.count_nonzero(row > score),
                np.count_nonzero(row == score),
            )
    return above, tied
