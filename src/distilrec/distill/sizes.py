"""Students of several sizes: what `distilrec sweep` trains."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError
from distilrec.networks.build import StudentConfig, student_class
from distilrec.networks.student import Size
from distilrec.settings import Count, NotNegative, Part, Settings

# Largest default size, as a share of the number of items
_WIDEST = 1 / 4


class SweepConfig(Settings, frozen=True):
    """Which students `distilrec sweep` trains, with and without distillation, and when it calls a
    student as good as another model.
    """

    sizes: tuple[Count, ...] = ()
    """Sizes of the student: its `dim`, or the `depth` of a tree. By default 4, 8, 16, 32, 64 and
    128, as far as they are at most a quarter of the items (trees: 2 to 7).
    """
    shares: tuple[Annotated[float, Meta(gt=0, le=1)], ...] = (1.0,)
    """Shares of the users whose rows the students are trained on; the teacher has had all users."""
    seeds: Count = 1
    """Number of trainings of each student; claims need at least 3."""
    loss: Part = 0.05
    """Share of NDCG@10 by which a student may be worse than another model and still be called as
    good.
    """
    minutes: NotNegative = 0.0
    """Minutes after which no new training begins; 0 is no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sizes", "shares"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(
                    f"{name} has a value twice: {', '.join(map(str, values))}",
                    fix="name each value once",
                    parameter=name,
                )
        if not self.shares:
            raise ConfigError("shares is empty", fix="use 1.0 for all users", parameter="shares")


def size_of(student: StudentConfig) -> Size:
    """Return the setting that is the size of students of this kind. Raises ConfigError for a kind
    without such a setting.
    """
    size = student_class(student).size
    if size.setting not in student.__struct_fields__:
        raise ConfigError(
            f"students of the kind {student.__struct_config__.tag} have no {size.setting}, and do "
            "not say which setting is their size",
            fix="give the class of the student a `size` of its own",
            parameter="student",
        )
    return size


def students_of_sizes(
    student: StudentConfig, dataset: Dataset, sizes: tuple[int, ...]
) -> dict[int, StudentConfig]:
    """Return the settings of the student in several sizes, the smallest first. sizes: () for the
    default sizes of its kind that are not too large for the catalogue.

    Raises ConfigError for a size that the student cannot have.
    """
    size = size_of(student)
    if not sizes:
        largest = dataset.info.warm_items * _WIDEST
        sizes = tuple(value for value in size.values if value <= largest) or size.values[:1]
    return {value: resized(student, value) for value in sorted(sizes)}


def resized(student: StudentConfig, value: int) -> StudentConfig:
    """Return the student in another size, with all other settings as they are."""
    return msgspec.structs.replace(student, **{size_of(student).setting: value})
