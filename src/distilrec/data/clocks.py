"""Whether the times of a log can tell a model how long ago something happened."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DAY, _QUARTER = 86_400.0, 900.0
# Midnight has up to two times of day in a zone that changes its clocks, and one more where the zone
# itself was changed
_MOST_MIDNIGHTS = 3


def why_no_times(times: NDArray[np.float64], *, named: bool) -> str:
    """Return why models cannot be told these times, as a clause; "" where they can.

    times: (rows,) seconds since 1970. named: whether the log has a column of times; otherwise these
    are numbers of rows.
    """
    if not named:
        return "the log has no column of times"
    if not len(times) or times.min() == times.max():
        return "all times of the log are equal"
    if (times % _QUARTER != 0).any():  # most logs: then nothing is sorted
        return ""
    if len(np.unique(times % _DAY)) <= _MOST_MIDNIGHTS:
        return "the times of the log are dates without a time of day"
    return ""
