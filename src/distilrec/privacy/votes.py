"""Private labels from many teachers: each teacher knows its own users only, and what is told is
their noisy vote.

    n_u = sum over teachers of v_t(u) + N(0, sigma^2 I)
    v_t(u) = 1/sqrt(k) for the teacher's k best items, else 0

In the manner of PATE (Papernot et al. 2018, sec. 4): one user sits with one teacher, so a user more
or less changes each histogram by at most sqrt(2) in length, and all of them together spend what the
Gaussian mechanism spends. The student learns from the winners, about users whose own data are not
to be protected (volunteers, staff, an older public log).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset, Histories
from distilrec.errors import TeacherError
from distilrec.measure.ranking import MOST_SCORES
from distilrec.privacy.accounting import noise_of_one_release
from distilrec.settings import Count, Part, Positive, Settings
from distilrec.teachers.external import ScoresConfig, UserScores, user_scores


class Voter(Protocol):
    """Who scores items: any teacher."""

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores of the whole catalogue after each history, (batch, items) float32."""
        ...


class VoteConfig(Settings, frozen=True):
    """What private votes spend, and how many winners they tell."""

    epsilon: Positive | None = 8.0
    """What all votes together may spend about any user of any teacher; none adds no noise."""
    delta: Part = 1e-5
    """The delta that belongs to it."""
    top: Count = 10
    """Number of items for which a teacher votes, and of winners that are told."""


@dataclass(frozen=True)
class Votes:
    """items: (users, top) int64, the winners for each user with training rows, best first; counts:
    their noisy votes, the same shape; sigma: of the noise.
    """

    items: NDArray[np.int64]
    counts: NDArray[np.float64]
    sigma: float

    def teacher(self, dataset: Dataset) -> UserScores:
        """Return the winners as a teacher of the data set they were voted for: `extract_labels` and
        `distill_model` do the rest.
        """
        users, top = self.items.shape
        ids = np.array(dataset.info.item_ids, dtype=object)
        table = pl.DataFrame(
            {
                "user_id": np.repeat(
                    np.array(dataset.info.user_ids[:users], dtype=object), top
                ).tolist(),
                "item_id": ids[self.items.ravel()].tolist(),
                "rank": np.tile(np.arange(1.0, top + 1), users),
            }
        )
        return user_scores(table, dataset, ScoresConfig(file="", rank="rank"), "the votes")


def sigma_for(config: VoteConfig, questions: int) -> float:
    """Return the noise that lets the votes on all questions stay within epsilon (PRV
    accountant).
    """
    if config.epsilon is None:
        return 0.0
    alone = noise_of_one_release(config.epsilon, config.delta)
    # Gaussian noise composes as one question of that sensitivity
    return alone * math.sqrt(2 * questions)


def private_votes(
    voters: Sequence[Voter],
    dataset: Dataset,
    config: VoteConfig,
    *,
    candidates: NDArray[np.int64],
    seed: int,
) -> Votes:
    """Return the winners for every user of a data set, after the training history.

    voters: teachers of disjoint groups of users over this catalogue, none of whom is in this data
    set. candidates: (users with training rows, n) items that can be voted for, chosen without the
    voters' data; the fewer, the less noise wins.
    Raises TeacherError where there are fewer than two voters or fewer candidates than winners.
    """
    users = np.arange(dataset.info.warm_users)
    if len(voters) < 2 or candidates.shape[0] != len(users) or candidates.shape[1] < config.top:
        raise TeacherError(
            f"{len(voters)} voters on {candidates.shape} candidates for {len(users)} users cannot "
            f"choose {config.top} items",
            fix="train at least two teachers, and give every user at least as many candidates as "
            "winners",
        )
    histories = dataset.histories(users, dataset.train_end[users])
    counts = np.zeros(candidates.shape)
    for voter in voters:
        of_candidates = _scores_of(voter, histories, candidates, dataset)
        best = np.argpartition(-of_candidates, config.top - 1, axis=1)[:, : config.top]
        np.put_along_axis(
            counts, best, np.take_along_axis(counts, best, 1) + 1 / math.sqrt(config.top), 1
        )
    sigma = sigma_for(config, len(users))
    counts += np.random.default_rng(seed).normal(0.0, sigma, counts.shape) if sigma else 0.0
    order = np.argsort(-counts, axis=1, kind="stable")[:, : config.top]
    return Votes(
        np.take_along_axis(candidates, order, 1), np.take_along_axis(counts, order, 1), sigma
    )


def _scores_of(
    voter: Voter, histories: Histories, candidates: NDArray[np.int64], dataset: Dataset
) -> NDArray[np.float32]:
    """Return a voter's scores of the candidates of each user, (users, n), -inf for an item that the
    user has had where the log has no repeats.
    """
    parts = []
    step = max(1, MOST_SCORES // dataset.catalogue_size)
    for start in range(0, len(histories), step):
        part = histories.select(start, start + step)
        scores = voter.scores(part).copy()
        if not dataset.info.repeats:
            for k in range(len(part)):
                scores[k, part.of(k)] = -np.inf
        parts.append(np.take_along_axis(scores, candidates[start : start + step], 1))
    return np.concatenate(parts)
