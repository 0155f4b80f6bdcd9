"""What a student has besides a network: its settings, its arrays in a bundle, its search space and,
where people can read it, itself in words.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import torch

from distilrec.data.dataset import Dataset
from distilrec.networks.sequence import SequenceModel
from distilrec.settings import Settings


class StudentSettings(Settings, frozen=True, tag_field="kind"):
    """Base of the settings of all students. The tag of a subclass names its kind.

    Each has `max_history`; one with `dropout` gets that of the distillation while it is distilled.
    """


def kind_of(config: Settings) -> str:
    """Return the kind of student that these settings are of."""
    return str(config.__struct_config__.tag)


@dataclass(frozen=True)
class Range:
    """The values of a setting that `distilrec tune` tries: whole numbers up to `high`, or floats
    below it where `low` is one.

    log: values are drawn by their logarithm.
    """

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Any, name: str) -> float:
        """Return the value that an Optuna trial tries under this name."""
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        value: float = suggest(name, self.low, self.high, log=self.log)
        return value


@dataclass(frozen=True)
class Size:
    """What makes a student of a kind larger or smaller. unit: what the value counts; values: the
    sizes that `distilrec sweep` trains by default.
    """

    setting: str = "dim"
    unit: str = "floats"
    values: tuple[int, ...] = (4, 8, 16, 32, 64, 128)


class TreeNode(msgspec.Struct, frozen=True):
    """A gate or a leaf, to be read. share: of requests that get here; questions: what pulls to the
    right (+) or to the left (-), strongest first, gates only; items: what is typical here;
    children: left, right.
    """

    share: float
    questions: tuple[str, ...]
    items: tuple[str, ...]
    children: tuple[TreeNode, ...] = ()


class Student(SequenceModel):
    """A network that can be exported. It is made from a data set and its settings.

    The engine's runtime of the same kind computes the same from the arrays; the contract test
    `distilrec.testing.StudentContract` compares them.
    """

    settings: ClassVar[type[StudentSettings]]
    """The class of its settings."""
    space: ClassVar[Mapping[str, Range]] = {}
    """The settings that `distilrec tune` searches; the width is left to the user."""
    size: ClassVar[Size] = Size()
    """The setting that `distilrec sweep` changes."""
    timezone: str | None = None
    """Zone of hours and days, where the student is told the time."""
    visit_gap: float = 0.0
    """Seconds without an event that end a visit, where the student knows visits."""

    @abstractmethod
    def __init__(self, dataset: Dataset, config: Any) -> None:
        """Make a student with fresh weights. config: of the class `settings`."""
        super().__init__()

    @abstractmethod
    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the arrays that only this kind has, named as in the runtime's shapes."""

    def item_vectors(self) -> torch.Tensor:
        """Return what a bundle holds for each item, (items, dim)."""
        return self.items.vectors()

    def item_table(self) -> torch.Tensor:
        """Return what each item feature adds to the vector of a new item, (columns, dim)."""
        return self.items.features.table

    def user_table(self) -> torch.Tensor:
        """Return what each user feature adds to the vector of a user, (columns, dim)."""
        return self.user_features.table

    def in_words(self, dataset: Dataset) -> TreeNode | None:
        """Return the student as a tree to be read, None where it is not one. Shares are those of
        all users after their training history.
        """
        return None
