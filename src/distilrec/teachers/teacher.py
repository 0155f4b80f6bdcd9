"""The interface of teachers: models that score every item for any history, trained here or
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Histories
from distilrec.errors import TeacherError
from distilrec.networks.batches import Batch
from distilrec.networks.sequence import TorchScorer
from distilrec.training.options import Epoch
from distilrec.training.trained import TrainedModel


class Answer(NamedTuple):
    """logits: (positions, items) float32; states: (positions, dim) float32, where there are any."""

    logits: torch.Tensor
    states: torch.Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """What is known of a teacher's cost. parameters: numbers that it learned; seconds: of its
    training.
    """

    parameters: int | None = None
    seconds: float | None = None
    curve: tuple[Epoch, ...] = ()


class Teacher(Protocol):
    """identity: a hash that changes when the answers do; max_history: events that it looks at;
    state_dim: channels of its hidden layer, 0 for none; per_user: it says the same about all events
    of a user.
    """

    identity: str
    max_history: int
    state_dim: int
    per_user: bool
    cost: Cost

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        """Return logits before the target events at (window, position) of a batch, (positions,)
        int64 each.

        items: number of items to score, the first ones of the catalogue: those with training rows,
        or all.
        """
        ...

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores of the whole catalogue after each history, (batch, items) float32."""
        ...


Reader = Callable[[torch.Tensor, torch.Tensor], Answer]


@runtime_checkable
class Readable(Protocol):
    """A teacher that reads a batch once and then answers about some of its positions at a time."""

    def read(self, batch: Batch, items: int) -> Reader:
        """Return a function that answers as `Teacher.answer` does, from window and position."""
        ...


def reader(teacher: Teacher, batch: Batch, items: int) -> Reader:
    """Return a function that asks a teacher about positions of a batch, given by window and
    position, (positions,) int64 each.
    """
    if isinstance(teacher, Readable):
        return teacher.read(batch, items)
    return lambda window, position: teacher.answer(batch, window, position, items)


@runtime_checkable
class Movable(Protocol):
    """A teacher that can answer on another device."""

    def move_to(self, device: torch.device) -> None:
        """Move it there, in place."""
        ...


def as_teacher(teacher: Teacher | TrainedModel) -> Teacher:
    """Return a trained network as a teacher; a teacher stays what it is."""
    return ModelTeacher(teacher) if isinstance(teacher, TrainedModel) else teacher


def check_finite(logits: torch.Tensor) -> None:
    """Raise TeacherError where a teacher's logits hold NaN or infinity."""
    if not torch.isfinite(logits).all():
        raise TeacherError(
            "the teacher's scores hold NaN or infinity",
            fix="train it again, or correct the scores: each item needs a finite number",
        )


def move_teacher(teacher: Teacher, device: torch.device) -> None:
    """Move the networks of a teacher to a device. One without networks stays where it is."""
    if isinstance(teacher, Movable):
        teacher.move_to(device)


class ModelTeacher:
    """A network that was trained here."""

    per_user = False

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained
        self.identity = trained.record.identity
        self.max_history = trained.model.max_history
        self.state_dim = trained.model.state_dim
        self.cost = Cost(trained.model.parameter_count(), trained.seconds, trained.record.curve)
        self._scorer = TorchScorer(trained.model)

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        return self.read(batch, items)(window, position)

    def read(self, batch: Batch, items: int) -> Reader:
        """Encode a batch, and return what scores some of its positions."""
        model = self.trained.model
        with torch.inference_mode():
            vectors, biases = self._scorer.vectors, self._scorer.biases
            encoded = model.encode(batch.to(model.device), vectors)

        def answer(window: torch.Tensor, position: torch.Tensor) -> Answer:
            with torch.inference_mode():
                states = encoded[window, position]
                logits = model.score(states, vectors[:items], biases[:items])
                return Answer(logits, states[:, : self.state_dim])

        return answer

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        return self._scorer.scores(histories)

    def move_to(self, device: torch.device) -> None:
        """Move the network, and what was computed from it, to a device."""
        if self.trained.model.device != device:
            self._scorer = TorchScorer(self.trained.model.to(device))

    def item_vectors(self) -> NDArray[np.float32]:
        """Return the vectors of the items, (items, dim) float32."""
        vectors: NDArray[np.float32] = self._scorer.vectors.cpu().numpy()
        return vectors
