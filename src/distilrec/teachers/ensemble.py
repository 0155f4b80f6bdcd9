"""The `ensemble` teacher: a calibrated average of several teachers, usually better than each of
them.

    z = sum over members of w_m z_m,   w >= 0 chosen by the likelihood of the validation items

A logarithmic opinion pool (Heskes 1998, sec. 2): the weights also set each member's temperature, so
that members whose scores are no logits, such as the linear one, take part as they deserve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.measure.ranking import questions
from distilrec.networks.batches import Batch
from distilrec.teachers.teacher import Answer, Cost, Reader, Teacher, move_teacher, reader
from distilrec.training.scoring import MASKED_LOGIT

_MOST_QUESTIONS = 4_000
_MOST_LOGITS = 2**28  # of all members and questions together: 1 GiB
_STEPS = 200


class EnsembleTeacher:
    """members: teachers of the same data set; weights: (members,)."""

    state_dim = 0

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float]) -> None:
        self.members, self.weights = tuple(members), tuple(weights)
        self.max_history = min(
            (member.max_history for member in members if not member.per_user), default=1
        )
        self.per_user = all(member.per_user for member in members)
        content = repr(
            [
                (member.identity, round(weight, 6))
                for member, weight in zip(members, weights, strict=True)
            ]
        )
        self.identity = hashlib.sha256(content.encode()).hexdigest()[:16]
        costs = [member.cost for member in members]
        self.cost = Cost(
            sum(member.parameters for member in costs if member.parameters is not None),
            sum(member.seconds for member in costs if member.seconds is not None),
        )

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        return self.read(batch, items)(window, position)

    def read(self, batch: Batch, items: int) -> Reader:
        """Let each member read a batch, and return what averages their answers."""
        readers = [
            (reader(member, batch, items), weight)
            for member, weight in zip(self.members, self.weights, strict=True)
            if weight
        ]

        def answer(window: torch.Tensor, position: torch.Tensor) -> Answer:
            total = torch.zeros(())
            for read, weight in readers:
                logits = read(window, position).logits
                total = total.to(logits.device) + weight * logits
            return Answer(total)

        return answer

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        total = np.zeros((), np.float32)
        for member, weight in zip(self.members, self.weights, strict=True):
            if weight:
                total = total + np.float32(weight) * member.scores(histories)
        return total

    def move_to(self, device: torch.device) -> None:
        """Move the networks among the members to a device."""
        for member in self.members:
            move_teacher(member, device)


def calibrated_ensemble(members: Sequence[Teacher], dataset: Dataset, seed: int) -> EnsembleTeacher:
    """Return the ensemble whose weights make the validation items most likely; at most 4,000 users
    are asked.

    The likelihood is that of a softmax over the items that a user has not had. Its logarithm is
    concave in the weights.
    """
    held_out = questions(dataset, "validation")
    owners = np.repeat(np.arange(len(held_out.histories)), np.diff(held_out.offsets))
    usable = np.flatnonzero(
        (held_out.targets != UNKNOWN_ITEM) & (held_out.targets < dataset.info.warm_items)
    )
    limit = max(1, min(_MOST_QUESTIONS, _MOST_LOGITS // (len(members) * dataset.info.warm_items)))
    if len(usable) > limit:
        usable = np.sort(np.random.default_rng(seed).choice(usable, limit, replace=False))
    users, targets = owners[usable], torch.from_numpy(held_out.targets[usable].astype(np.int64))
    needed, position = np.unique(users, return_inverse=True)
    histories = dataset.histories(
        held_out.histories.users[needed], dataset.train_end[held_out.histories.users[needed]]
    )
    scores = [member.scores(histories)[:, : dataset.info.warm_items] for member in members]
    of_members = torch.from_numpy(np.stack(scores))  # (members, users, items)
    seen = torch.zeros(of_members.shape[1:], dtype=torch.bool)
    if held_out.exclude_seen:
        rows = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
        warm = histories.items < dataset.info.warm_items
        seen[rows[warm], histories.items[warm]] = True
    index = torch.from_numpy(position.reshape(-1))
    # (members,): all begin with scores of like size
    scales = of_members.masked_fill(seen, 0.0).std((1, 2)).clamp(min=1e-6)
    raw = torch.full((len(members),), 1.0 / len(members), requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        logits = torch.einsum("m,mui->ui", raw / scales, of_members)
        logits = logits.masked_fill(seen, MASKED_LOGIT)
        loss = -torch.log_softmax(logits, dim=-1)[index, targets].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            raw.clamp_(min=0.0)
    if not raw.any():  # no member is of use: then all have the same weight
        raw = torch.full_like(raw, 1.0 / len(members))
    weights = (raw / scales).detach()
    return EnsembleTeacher(members, [float(weight) for weight in weights])
