"""The teacher of a refresh that is to forget less: for some users, an earlier model has a say.

    (1 - w) z + w e

z: logits of the teacher; e: logits of the earlier model; w: its weight. A logarithmic opinion pool
(Heskes 1998, sec. 2) with the answers of the model before as in learning without forgetting (Li &
Hoiem 2016, sec. 3).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Histories
from distilrec.files import key_of
from distilrec.networks.batches import Batch
from distilrec.teachers.teacher import (
    Answer,
    ModelTeacher,
    Reader,
    Teacher,
    move_teacher,
    reader,
)


class RememberingTeacher:
    """A teacher, and for some users an earlier model as a second one, on the same data set.

    weight: of the earlier model, between 0 and 1; users: (users,) bool, for whom it is asked.
    """

    per_user = False

    def __init__(
        self, teacher: Teacher, earlier: ModelTeacher, weight: float, users: NDArray[np.bool_]
    ) -> None:
        self._teacher, self._earlier, self._weight = teacher, earlier, weight
        self._users = torch.from_numpy(users)
        self.max_history = min(teacher.max_history, earlier.max_history)
        self.state_dim, self.cost = teacher.state_dim, teacher.cost
        self.identity = key_of(
            teacher.identity, earlier.identity, weight, np.flatnonzero(users).tolist()
        )

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        return self.read(batch, items)(window, position)

    def read(self, batch: Batch, items: int) -> Reader:
        """Let both read a batch, and return what joins their answers."""
        teacher, earlier = (reader(of, batch, items) for of in (self._teacher, self._earlier))

        def answer(window: torch.Tensor, position: torch.Tensor) -> Answer:
            said = teacher(window, position)
            asked = self._users[batch.users.cpu()[window.cpu()]].to(said.logits.device)
            if not asked.any():
                return said
            device = window.device
            before = earlier(window[asked.to(device)], position[asked.to(device)]).logits
            logits = said.logits.float().clone()
            logits[asked] = torch.lerp(logits[asked], before.to(logits.device), self._weight)
            return Answer(logits, said.states)

        return answer

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        asked = self._users.numpy()[histories.users][:, None]
        weight = np.float32(self._weight) * asked
        said, before = (of.scores(histories) for of in (self._teacher, self._earlier))
        return said + weight * (before - said)

    def move_to(self, device: torch.device) -> None:
        """Move the networks of both to a device."""
        for teacher in (self._teacher, self._earlier):
            move_teacher(teacher, device)
