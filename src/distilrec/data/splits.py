"""Training, validation and test parts of a log that is sorted by user and time.

A split is two row numbers per user: rows before `train_end` are training, rows from there to
`validation_end` are validation, the rest is test. So nothing in a later part can precede anything
in an earlier part of the same user.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from distilrec.offsets import groups_of
from distilrec.settings import Settings

BelowHalf = Annotated[float, Meta(gt=0, lt=0.5)]


class Split(Settings, frozen=True):
    """How to split the log.

    leave-one-out: the last interaction of each user is test, the one before validation; users with
    fewer than three interactions are training only. Comparable with papers. global-time: two
    moments for all users, so that `test_share` and `validation_share` of all rows lie after them.
    With `[targets]` only target events count: the last ones are held out, and shares are of them.
    The honest choice for production, where the future of one user is not the past of another.
    """

    kind: Literal["leave-one-out", "global-time"] = "leave-one-out"
    """The last events of each user, or the last events of all."""
    validation_share: BelowHalf = 0.1
    """Share of all rows, for global-time."""
    test_share: BelowHalf = 0.1
    """Share of all rows, for global-time."""


def split_moments(times: NDArray[np.float64], split: Split) -> tuple[float, float] | None:
    """Return the two moments of a global split of rows with these times, (rows,) seconds; None for
    leave-one-out.
    """
    if split.kind == "leave-one-out":
        return None
    first, second = np.quantile(
        times, [1 - split.validation_share - split.test_share, 1 - split.test_share]
    )
    return float(first), float(second)


def split_rows(
    offsets: NDArray[np.int64],
    times: NDArray[np.float64],
    moments: tuple[float, float] | None,
    targets: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `train_end` and `validation_end`, each (users,) int64.

    offsets: (users + 1,), the rows of user u are offsets[u]:offsets[u + 1]; times: (rows,) seconds;
    moments: of `split_moments`; targets: (rows,), which rows can be held out, all by default.
    """
    if moments is None and targets is not None:
        return _last_targets(offsets, targets)
    if moments is None:
        end = offsets[1:]
        enough = np.diff(offsets) >= 3
        return end - 2 * enough, end - 1 * enough
    first, second = moments
    users = groups_of(offsets)
    before_first = np.bincount(users[times < first], minlength=len(offsets) - 1)
    before_second = np.bincount(users[times < second], minlength=len(offsets) - 1)
    return offsets[:-1] + before_first, offsets[:-1] + before_second


def _last_targets(
    offsets: NDArray[np.int64], targets: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the last target but one of each user stands, and where the last one does; the
    end of the rows of users with fewer than three targets.
    """
    rows = np.flatnonzero(targets)
    until = np.searchsorted(rows, offsets)  # targets before each user
    enough = np.diff(until) >= 3
    ends = offsets[1:].copy(), offsets[1:].copy()
    for end, back in zip(ends, (2, 1), strict=True):
        end[enough] = rows[until[1:][enough] - back]
    return ends
