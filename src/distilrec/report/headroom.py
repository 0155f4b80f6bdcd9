"""What there is to distil: how far the teacher is above what is there without it, on validation.

A student learns from a teacher what the log does not tell it by itself. Where a baseline, or the
student without distillation, is as good as the teacher, there is little that labels could bring.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Questions, Scorer, questions, rank
from distilrec.measure.statistics import Difference, paired_difference

_K = 10
_HELP = (
    "What would help: a teacher that knows more or is trained better (several seeds of a network "
    "with `seeds = 3`, longer and larger trainings, features and texts of items and users); or "
    "serve what is as good without a teacher."
)


class Rival(msgspec.Struct, frozen=True):
    """What is there without the teacher. ndcg: on validation; lead: the teacher minus this."""

    name: str
    ndcg: float
    lead: Difference

    @property
    def clearly_below(self) -> bool:
        """Whether the teacher is above it, as far as the interval says."""
        return self.lead.interval.low > 0


class Headroom(msgspec.Struct, frozen=True):
    """NDCG@10 of the teacher and of its rivals on the validation part."""

    teacher: float
    rivals: tuple[Rival, ...]

    @property
    def near(self) -> tuple[Rival, ...]:
        """The rivals that are not clearly below the teacher."""
        return tuple(rival for rival in self.rivals if not rival.clearly_below)

    def lines(self, said: Headroom | None = None) -> list[str]:
        """Return a warning and what would help, where a rival is not clearly below the teacher.

        said: whose lines were said before, and are not repeated.
        """
        before = () if said is None else said.near
        lines = [
            f"There is little to distil: on validation, NDCG@10 is {self.teacher:.4f} for the "
            f"teacher and {rival.ndcg:.4f} for {rival.name}; teacher minus {rival.name}: "
            f"{rival.lead.interval.mean:+.4f}, 95% interval [{rival.lead.interval.low:+.4f}, "
            f"{rival.lead.interval.high:+.4f}]."
            for rival in self.near
            if rival.name not in {one.name for one in before}
        ]
        return [*lines, _HELP] if lines and not before else lines


def measure_headroom(dataset: Dataset, teacher: Scorer, rivals: Mapping[str, Scorer]) -> Headroom:
    """Compare a teacher with its rivals on the validation part."""
    held_out = questions(dataset, "validation")
    best = _ndcg(teacher, held_out)
    measured = {name: _ndcg(scorer, held_out) for name, scorer in rivals.items()}
    return Headroom(
        float(best.mean()),
        tuple(
            Rival(
                name,
                float(values.mean()),
                paired_difference(f"ndcg@{_K}", "teacher", best[None], name, values[None]),
            )
            for name, values in measured.items()
        ),
    )


def _ndcg(scorer: Scorer, held_out: Questions) -> NDArray[np.float64]:
    return ndcg(rank(scorer, held_out, depth=0), _K)
