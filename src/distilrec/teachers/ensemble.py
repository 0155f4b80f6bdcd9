"""The `ensemble` teacher: a weighted average of several teachers, usually better than each of them.

    z = sum over members of w_m z_m,   w >= 0 chosen on the validation part

A logarithmic opinion pool (Heskes 1998, sec. 2): the weights also set each member's temperature, so
that members whose scores are no logits, such as those in closed form, take part as they deserve.
`distilrec.teachers.pooling` chooses them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset, Histories
from distilrec.measure.ranking import Scorer, questions
from distilrec.networks.batches import Batch
from distilrec.teachers.item_weights import ItemWeightsTeacher
from distilrec.teachers.pooling import Asked, Values, Weighted, ask, likelihood, search
from distilrec.teachers.teacher import Answer, Cost, Reader, Teacher, move_teacher, reader
from distilrec.training.validation import mean_ndcg

_MOST_LOGITS = 2**28  # of all members and users who are asked together: 1 GiB


class Pooling(msgspec.Struct, frozen=True):
    """The weights of an ensemble. members: the identities of the teachers for which they were
    chosen; alone, together: the validation NDCG@10 of each by itself and of the ensemble.
    """

    weights: tuple[float, ...]
    members: tuple[str, ...]
    alone: tuple[float, ...] = ()
    together: float | None = None


class EnsembleTeacher:
    """Some teachers of one data set and their weights. A member of weight 0 is not asked."""

    def __init__(self, members: Sequence[Teacher], pooling: Pooling | Sequence[float]) -> None:
        if not isinstance(pooling, Pooling):
            pooling = Pooling(tuple(pooling), tuple(member.identity for member in members))
        self.members, self.pooling = tuple(members), pooling
        self.weights = pooling.weights
        pairs = zip(self.members, self.weights, strict=True)
        self._asked = [(member, weight) for member, weight in pairs if weight]
        asked = [member for member, _ in self._asked]
        self.max_history = _windows(asked)
        self.per_user = all(member.per_user for member in asked)
        # A hidden layer of one network among others is that of all
        with_states = [member for member in asked if member.state_dim]
        self.state_dim = with_states[0].state_dim if len(with_states) == 1 else 0
        content = repr([(member.identity, round(weight, 6)) for member, weight in self._asked])
        self.identity = hashlib.sha256(content.encode()).hexdigest()[:16]
        parameters = [member.cost.parameters for member in asked]
        seconds = [member.cost.seconds for member in self.members]
        self.cost = Cost(
            sum(number for number in parameters if number is not None),
            sum(time for time in seconds if time is not None),
        )

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        return self.read(batch, items)(window, position)

    def read(self, batch: Batch, items: int) -> Reader:
        """Let each member read a batch, and return what averages their answers."""
        readers = [(reader(member, batch, items), weight) for member, weight in self._asked]

        def answer(window: torch.Tensor, position: torch.Tensor) -> Answer:
            total, states = torch.zeros(()), None
            for read, weight in readers:
                member_answer = read(window, position)
                total = total.to(member_answer.logits.device) + weight * member_answer.logits
                if self.state_dim and member_answer.states is not None:
                    states = member_answer.states
            return Answer(total, states)

        return answer

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        return Weighted(self._asked).scores(histories)

    def move_to(self, device: torch.device) -> None:
        """Move the networks among the members to a device."""
        for member in self.members:
            move_teacher(member, device)


def single_teachers(teacher: Teacher) -> list[Teacher]:
    """Return the members of an ensemble, those of its members too, or the teacher itself in a
    list.
    """
    if not isinstance(teacher, EnsembleTeacher):
        return [teacher]
    return [single for member in teacher.members for single in single_teachers(member)]


def _windows(asked: Sequence[Teacher]) -> int:
    """Return the length of a window that suits all: of teachers that see only the window, the
    shortest.
    """
    of_events = [member for member in asked if not member.per_user]
    limited = [member for member in of_events if not isinstance(member, ItemWeightsTeacher)]
    return min((member.max_history for member in limited or of_events), default=1)


def pooled_ensemble(members: Sequence[Teacher], dataset: Dataset, seed: int) -> EnsembleTeacher:
    """Return the ensemble whose weights are the best on validation NDCG@10 as far as its users can
    show, and never worse there than a member alone. A network that no other member helps has the
    weight 1: it teaches what it would teach by itself.

    seed: of the sample of users, where all are too many to be asked for many weights.
    """
    held_out = questions(dataset, "validation")
    asked = ask(members, dataset, held_out, seed, _MOST_LOGITS)
    # Members who have answered all users are not asked again
    whole = asked.questions is held_out
    answering: Sequence[Scorer] = asked.members() if whole else members
    alone = tuple(mean_ndcg(member, held_out) for member in answering)
    identities = tuple(member.identity for member in members)
    for weights in _candidates(asked, alone):
        pairs = zip(answering, weights.tolist(), strict=True)
        pool = Weighted([(member, weight) for member, weight in pairs if weight])
        together = mean_ndcg(pool, held_out)
        if together >= max(alone):
            break
    best = int(np.argmax(weights))
    others_help = np.count_nonzero(weights) > 1 or alone[best] < max(alone)
    if not others_help and not isinstance(members[best], ItemWeightsTeacher):
        weights, together = np.eye(len(members))[best], alone[best]
    return EnsembleTeacher(members, Pooling(tuple(weights.tolist()), identities, alone, together))


def _candidates(asked: Asked, alone: Sequence[float]) -> Iterator[Values]:
    """Yield weights, the best first; the last are those of the best member alone."""
    units = np.eye(len(alone))
    likely = likelihood(asked)
    temperatures = np.ones(len(alone))
    if likely is not None:
        temperatures = np.array([likely.best_temperature(unit) for unit in units])
        weights_found = search(asked, likely.best_weights(), temperatures)
        yield weights_found * likely.best_temperature(weights_found)
    best = int(np.argmax(alone))
    yield units[best] * temperatures[best]
    # A power of two changes no digit, so that no scores become equal
    yield units[best] * 2.0 ** round(math.log2(temperatures[best]))
