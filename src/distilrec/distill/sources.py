"""Where the labels of a training step come from: a store, or a teacher that is asked about the
windows of the step.

A teacher that is asked gets the same input as the student, as in the "consistent" distillation of
Beyer et al. (2022, sec. 3). Stored labels may come from another window of the history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import torch

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, LabelStoreError
from distilrec.labels.extract import LabelConfig, best_and_drawn
from distilrec.labels.store import LabelManifest, LabelStore, StoredLabels
from distilrec.networks.batches import Batch
from distilrec.teachers.ensemble import single_teachers
from distilrec.teachers.teacher import (
    Answer,
    Teacher,
    as_teacher,
    check_finite,
    move_teacher,
    reader,
)
from distilrec.training.scoring import MASKED_LOGIT, Origin, Positions, Scored
from distilrec.training.trained import TrainedModel


class AskedManifest(msgspec.Struct, frozen=True):
    """Which teacher is asked, and for what; the fields are those of `LabelManifest`."""

    teacher: str
    top_k: int
    samples: int
    catalogue: int


class Source(Protocol):
    """The labels of one teacher.

    manifest: describes the labels. The parameter `of` of the methods has the scored positions,
    before (`Positions`) or after (`Scored`) their logits were computed.
    """

    @property
    def manifest(self) -> LabelManifest | AskedManifest: ...

    def state_width(self) -> int:
        """Return the number of channels of the teacher's states. Raises LabelStoreError for a
        teacher without states.
        """
        ...

    def labels(self, of: Positions | Scored) -> StoredLabels:
        """Return the best and the drawn items of each position."""
        ...

    def states(self, of: Positions | Scored) -> torch.Tensor:
        """Return the teacher's states, (positions, dim) float32."""
        ...


class Stored:
    """Labels from a store, looked up by the rows of the data set."""

    def __init__(self, store: LabelStore) -> None:
        self.store, self.manifest = store, store.manifest

    def state_width(self) -> int:
        return self.store.state_width()

    def labels(self, of: Positions | Scored) -> StoredLabels:
        return self.store.at(of.rows, of.states.device)

    def states(self, of: Positions | Scored) -> torch.Tensor:
        return self.store.states_at(of.rows, of.states.device)


class AskedTeacher:
    """A teacher that is asked during the training of its student, in place of stored labels.

    Its answers are kept for one chunk of positions only.
    config: `top_k` and `samples` are the numbers of best and drawn items of `labels`. seconds: time
    that the teacher took to answer, in this process.
    Raises ConfigError for a teacher that gives the same answer for all events of a user: it cannot
    be asked about windows.
    """

    def __init__(
        self, teacher: Teacher | TrainedModel, dataset: Dataset, config: LabelConfig | None = None
    ) -> None:
        config = config or LabelConfig()
        self.teacher = as_teacher(teacher)
        if self.teacher.per_user:
            raise ConfigError(
                "this teacher has one list of scores for each user, so it cannot be asked about "
                "training windows",
                fix='set distillation.labels = "stored"',
                parameter="distillation.labels",
            )
        items = dataset.catalogue_size if config.cold_items else dataset.info.warm_items
        self.manifest = AskedManifest(
            self.teacher.identity, min(config.top_k, items), config.samples, items
        )
        self.seconds = 0.0
        self._batch: Batch | None = None
        self._read: Callable[[torch.Tensor, torch.Tensor], Answer] | None = None
        self._origin: Origin | None = None
        self._answer: Answer | None = None

    def check_made_up(self) -> None:
        """Raise ConfigError where the teacher cannot be asked about altered histories: where one of
        its members has one list of scores for each user.
        """
        if any(teacher.per_user for teacher in single_teachers(self.teacher)):
            raise ConfigError(
                "a member of this teacher has one list of scores for each user, so it cannot be "
                "asked about altered histories",
                fix="set share = 0 in [distillation.altered], or leave the member out",
                parameter="distillation.altered.share",
            )

    def state_width(self) -> int:
        if not self.teacher.state_dim:
            raise LabelStoreError(
                "this teacher has no hidden layer, which the hint needs",
                fix="set distillation.hint_weight = 0, or use one trained network as the teacher",
            )
        return self.teacher.state_dim

    def labels(self, of: Positions | Scored) -> StoredLabels:
        manifest, logits = self.manifest, self.logits(of)
        highest = logits.amax(1, keepdim=True)
        masked = logits <= MASKED_LOGIT
        # On the CPU, so that the same items are drawn on every device
        drawn = torch.randint(manifest.catalogue, (len(logits), manifest.samples))
        relative = (logits - highest).masked_fill(masked, MASKED_LOGIT)
        return best_and_drawn(relative, manifest.top_k, drawn.to(logits.device))

    def logits(self, of: Positions | Scored) -> torch.Tensor:
        """Return the logits of all items, (positions, items) float32; those of items that a
        position has had are MASKED_LOGIT.
        """
        return self._answered(_positions(of)).logits

    def states(self, of: Positions | Scored) -> torch.Tensor:
        states = self._answered(_positions(of)).states
        assert states is not None
        return states

    def move_to(self, device: torch.device) -> None:
        """Move the networks of the teacher to a device, and drop the last answer."""
        move_teacher(self.teacher, device)
        self._batch = self._read = self._origin = self._answer = None

    def _answered(self, positions: Positions) -> Answer:
        """Return the teacher's answer about some positions. The last answer is kept for further
        losses of the same positions, and the teacher's encoding of the batch for further positions
        of it.
        """
        origin, began = positions.origin, time.perf_counter()
        if self._answer is not None and self._origin is origin:
            return self._answer
        self._answer = None
        if self._read is None or self._batch is not origin.batch:
            self._read = reader(self.teacher, origin.batch, self.manifest.catalogue)
            self._batch = origin.batch
        with torch.no_grad():
            raw = self._read(origin.window, origin.place)
            device = positions.states.device
            logits = raw.logits.to(device, torch.float32)
            check_finite(logits)
            seen = positions.seen
            # New tensors: those of the teacher's inference mode cannot be used with gradients
            logits = (
                logits.clone()
                if seen is None
                else logits.masked_fill(seen.among(slice(logits.shape[1])), MASKED_LOGIT)
            )
            states = None if raw.states is None else raw.states.to(device).float().clone()
        self._origin, self._answer = origin, Answer(logits, states)
        self.seconds += time.perf_counter() - began
        return self._answer


def _positions(of: Positions | Scored) -> Positions:
    if isinstance(of, Positions):
        return of
    assert of.positions is not None
    return of.positions


Labels = LabelStore | AskedTeacher


def sources(labels: Labels | Sequence[Labels]) -> list[Stored | AskedTeacher]:
    """Return the labels of one teacher or several as sources."""
    teachers = [labels] if isinstance(labels, LabelStore | AskedTeacher) else list(labels)
    return [Stored(teacher) if isinstance(teacher, LabelStore) else teacher for teacher in teachers]


def asked_teachers(label_sources: Sequence[Stored | AskedTeacher]) -> list[AskedTeacher]:
    """Return the sources that are teachers to be asked."""
    return [source for source in label_sources if isinstance(source, AskedTeacher)]
