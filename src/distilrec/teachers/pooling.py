"""The weights of an ensemble: by likelihood, then by NDCG@10, both on the validation part.

    z = sum over members of w_m u_m,   u_m = t_m z_m,   t_m the likeliest temperature of m alone

The likeliest weights begin. They are compared with every member alone, every pool without one
member, and pairs; then each weight in turn is changed while that helps. Few users say little, and a
search over many weights finds what only these users show: weights give way to others only where the
mean gain over the users is more than its standard error. Only to be no worse than the best member
alone, they give way to any that are better; and a member without which the pool is as good leaves
it. In the end all validation users are asked whether the pool is no worse than its best member;
otherwise that member stands alone. A network that stands alone has the weight 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Questions, Ranking, Scorer, standing
from distilrec.offsets import groups_of
from distilrec.teachers.teacher import Teacher
from distilrec.training.scoring import MASKED_LOGIT

_MOST_OF_LIKELIHOOD = 2**26
_USERS_TOGETHER = 256
_STEPS = 200  # of Adam
_SECTIONS = 40
_ROUNDS = 4
_FACTORS = (0.0, 0.5, 0.75, 1.33, 2.0)  # of a weight that is changed
_ENTRIES = (0.1, 0.25, 0.5)  # for a weight of 0, as a share of all
_PAIRS = (0.25, 0.5, 0.75)  # weights of the first of two
K = 10

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """What the members say to validation users. scores: (members, users, items) float32; rows and
    items: what is masked, (n,) each.
    """

    questions: Questions
    scores: torch.Tensor
    rows: torch.Tensor
    items: torch.Tensor
    warm_items: int

    def pool(self, weights: Values, users: slice = slice(None)) -> torch.Tensor:
        """Return the weighted sum of the members, (users, items), not masked."""
        scores = self.scores[:, users]
        return torch.einsum("m,mui->ui", torch.from_numpy(weights).float(), scores)

    def masked(self, logits: torch.Tensor, first: int, value: float) -> torch.Tensor:
        """Return logits of the users from `first` on with a value for the masked items, in
        place.
        """
        inside = (self.rows >= first) & (self.rows < first + len(logits))
        logits[self.rows[inside] - first, self.items[inside]] = value
        return logits

    def ndcg(self, weights: Values) -> Values:
        """Return the NDCG@10 of a pool for each user, (users,)."""
        above, tied = [], []
        for first in range(0, len(self.questions.histories), _USERS_TOGETHER):
            users = slice(first, first + _USERS_TOGETHER)
            scores = self.masked(self.pool(weights, users), first, -math.inf)
            questions = self.questions.select(users.start, users.stop)
            owners = groups_of(questions.offsets)
            higher, equal = standing(scores.numpy(), owners, questions.targets)
            above.append(higher)
            tied.append(equal)
        unused = np.zeros(0, np.float64)
        ranking = Ranking(
            self.questions,
            np.concatenate(above),
            np.concatenate(tied),
            unused.astype(np.int64),
            np.zeros((0, 0), np.int32),
            unused,
        )
        return ndcg(ranking, K)

    def members(self) -> list[Told]:
        """Return what each member said, for the users who were asked."""
        users = self.questions.histories.users
        row_of = np.full(int(users.max(initial=-1)) + 1, -1, np.int64)
        row_of[users] = np.arange(len(users))
        return [Told(said, row_of) for said in self.scores.numpy()]


@dataclass(frozen=True)
class Told:
    """What a member said after one history of each user, to be read again.

    said: (users who were asked, items) float32; row_of: (users,) int64, the row of each user.
    """

    said: NDArray[np.float32]
    row_of: NDArray[np.int64]

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32."""
        said: NDArray[np.float32] = self.said[self.row_of[histories.users]]
        return said


@dataclass(frozen=True)
class Weighted:
    """The weighted sum of the scores of some members, in their order."""

    members: Sequence[tuple[Scorer, float]]

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32."""
        total = np.zeros((), np.float32)
        for member, weight in self.members:
            total = total + np.float32(weight) * member.scores(histories)
        return total


def ask(
    members: Sequence[Teacher], dataset: Dataset, held_out: Questions, seed: int, most: int
) -> Asked:
    """Return what the members say to the users of these questions; to a sample of them where all
    answers together would be more than `most` numbers.
    """
    users = len(held_out.histories)
    limit = max(1, most // (len(members) * dataset.catalogue_size))
    if users > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(users, limit, replace=False))
        held_out = held_out.take(chosen)
    histories = held_out.histories
    scores = np.empty((len(members), len(histories), dataset.catalogue_size), np.float32)
    for row, member in zip(scores, members, strict=True):
        for first in range(0, len(histories), _USERS_TOGETHER):
            stop = first + _USERS_TOGETHER
            row[first:stop] = member.scores(histories.select(first, stop))
    rows = groups_of(histories.offsets)
    masked = held_out.exclude_seen
    return Asked(
        held_out,
        torch.from_numpy(scores),
        torch.from_numpy(rows if masked else rows[:0]),
        torch.from_numpy((histories.items if masked else histories.items[:0]).astype(np.int64)),
        dataset.info.warm_items,
    )


@dataclass(frozen=True)
class Likelihood:
    """How likely the validation items are under a pool: a softmax over the items with training rows
    that a user has not had.

    of_members: (members, users, items); seen: (users, items); users, targets: (questions,).
    """

    of_members: torch.Tensor
    seen: torch.Tensor
    users: torch.Tensor
    targets: torch.Tensor

    def best_weights(self) -> Values:
        """Return the weights, at least 0, under which the items are most likely, (members,). The
        logarithm of the likelihood is concave in them.
        """
        members = len(self.of_members)
        # (members,): all begin with scores of like size
        scales = self.of_members.masked_fill(self.seen, 0.0).std((1, 2)).clamp(min=1e-6)
        raw = torch.full((members,), 1.0 / members, requires_grad=True)
        optimizer = torch.optim.Adam([raw], lr=0.05)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            loss = -self._mean(torch.einsum("m,mui->ui", raw / scales, self.of_members))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                raw.clamp_(min=0.0)
        if not raw.any():  # no member is of use: then all have the same weight
            raw = torch.full_like(raw, 1.0 / members)
        weights: Values = (raw / scales).detach().double().numpy()
        return weights

    def best_temperature(self, weights: Values) -> float:
        """Return the factor of a pool under which the items are most likely: by sections, as its
        logarithm is concave too.
        """
        logits = torch.einsum("m,mui->ui", torch.from_numpy(weights).float(), self.of_members)
        size = float(logits.masked_fill(self.seen, 0.0).std().clamp(min=1e-6))
        low, high = math.log(1e-2 / size), math.log(1e2 / size)
        for _ in range(_SECTIONS):
            third = (high - low) / 3
            left, right = low + third, high - third
            if self._mean(math.exp(left) * logits) < self._mean(math.exp(right) * logits):
                low = left
            else:
                high = right
        return math.exp((low + high) / 2)

    def _mean(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.masked_fill(self.seen, MASKED_LOGIT)
        return torch.log_softmax(logits, dim=-1)[self.users, self.targets].mean()


def likelihood(asked: Asked) -> Likelihood | None:
    """Return the likelihood over the users who were asked, or some of them where they are many;
    None where no validation item has training rows.
    """
    members, users, warm = len(asked.scores), asked.scores.shape[1], asked.warm_items
    most = max(1, _MOST_OF_LIKELIHOOD // (members * warm))
    chosen = np.unique(np.linspace(0, users - 1, min(users, most)).astype(np.int64))
    place = np.full(users, -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    held_out = asked.questions
    owners = place[groups_of(held_out.offsets)]
    usable = (owners >= 0) & (held_out.targets != UNKNOWN_ITEM) & (held_out.targets < warm)
    if not usable.any():
        return None
    rows = torch.from_numpy(place)[asked.rows]
    inside = (rows >= 0) & (asked.items < warm)
    seen = torch.zeros(len(chosen), warm, dtype=torch.bool)
    seen[rows[inside], asked.items[inside]] = True
    return Likelihood(
        asked.scores[:, torch.from_numpy(chosen), :warm],
        seen,
        torch.from_numpy(owners[usable]),
        torch.from_numpy(held_out.targets[usable].astype(np.int64)),
    )


def search(asked: Asked, likely: Values, alone: Values) -> Values:
    """Return the weights of the pool that has the best NDCG@10, as far as the users can show.

    likely: the likeliest weights; alone: the likeliest temperature of each member alone.
    """
    current = _Pool(likely, asked.ndcg(likely))
    others = [_Pool(weights, asked.ndcg(weights)) for weights in _starts(likely, alone)]
    members = others[: len(alone)]
    current = _better(current, others, clearly=True) or current
    current = _refined(asked, current, alone, clearly=True)
    best = max(members, key=lambda pool: pool.mean)
    if current.mean < best.mean:
        current = _refined(asked, current, alone, clearly=False)
    return _pruned(asked, current).weights if current.mean >= best.mean else best.weights


@dataclass(frozen=True)
class _Pool:
    """Weights, and the NDCG@10 that they have, (users,)."""

    weights: Values
    ndcg: Values

    @property
    def mean(self) -> float:
        return float(self.ndcg.mean())

    def gain(self, other: _Pool, *, clearly: bool) -> bool:
        """Whether this is better; clearly: by more than the standard error of the difference."""
        difference = self.ndcg - other.ndcg
        error = difference.std() / math.sqrt(len(difference)) if clearly else 0.0
        return bool(difference.mean() > error)


def _better(current: _Pool, others: Sequence[_Pool], *, clearly: bool) -> _Pool | None:
    """Return the best of the others that are better than the current pool."""
    better = [pool for pool in others if pool.gain(current, clearly=clearly)]
    return max(better, key=lambda pool: pool.mean, default=None)


def _starts(likely: Values, alone: Values) -> Iterator[Values]:
    """Yield every member alone, every pool without one member, and pairs."""
    units = np.diag(alone)
    yield from units
    for out in np.flatnonzero(likely) if np.count_nonzero(likely) > 1 else ():
        yield np.where(np.arange(len(likely)) == out, 0.0, likely)
    for first, second in combinations(range(len(alone)), 2):
        for share in _PAIRS:
            yield share * units[first] + (1 - share) * units[second]


def _refined(asked: Asked, current: _Pool, alone: Values, *, clearly: bool) -> _Pool:
    """Return the pool after changes of one weight after the other, while that helps."""
    for _ in range(_ROUNDS):
        before = current
        for member in range(len(alone)):
            tried = [
                _Pool(weights, asked.ndcg(weights))
                for weights in _changes(current.weights, member, alone)
            ]
            current = _better(current, tried, clearly=clearly) or current
        if current is before:
            break
    return current


def _pruned(asked: Asked, current: _Pool) -> _Pool:
    """Return the pool without the members that do not help."""
    for member in np.argsort(current.weights, kind="stable"):
        without = np.where(np.arange(len(current.weights)) == member, 0.0, current.weights)
        if current.weights[member] and without.any():
            pruned = _Pool(without, asked.ndcg(without))
            if pruned.mean >= current.mean:
                return _pruned(asked, pruned)
    return current


def _changes(weights: Values, member: int, alone: Values) -> Iterator[Values]:
    """Yield the weights with others for one member."""
    own = weights[member]
    total = float((weights / alone).sum())
    values = [own * f for f in _FACTORS] if own else [alone[member] * total * f for f in _ENTRIES]
    for value in values:
        changed = weights.copy()
        changed[member] = value
        if changed.any():
            yield changed
