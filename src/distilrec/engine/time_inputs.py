"""What the time of a question adds to what a student knows of a user,
`distilrec.networks.time_inputs`, as numpy arrays.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Final

import msgspec
import numpy as np

from distilrec.bundle.checks import Arrays, Shapes, require
from distilrec.bundle.manifest import TIME, Manifest
from distilrec.engine.items import Floats
from distilrec.errors import ConfigError
from distilrec.zones import check_zone, zone_named

PER_KNOT = 2.0  # octaves of 1 + gap between two rows of the table of gaps
KNOTS = 13  # rows of it: the last one is of gaps from 2^24 seconds on, half a year
HOURS, DAYS = 24, 7
HOUR, DAY = 3_600, 86_400  # seconds
NEVER: Final = -math.inf
"""The time of the last event of a user without events."""

_NOTHING, _HOURS, _DAYS = "time_nothing", "time_hours", "time_days"


def shapes_of_time(manifest: Manifest, weights: Arrays) -> Shapes:
    """Return the shapes of the arrays of the time inputs; empty for a student without them. Raises
    ValueError where no time zone comes with them, or one that is not known.
    """
    timezone = manifest.timezone
    if not any(name in weights for name in (TIME, _NOTHING, _HOURS, _DAYS)):
        require(timezone is msgspec.UNSET, "has a time zone, and no arrays that read the time")
        return {}
    require(timezone is not msgspec.UNSET, "reads the time, and names no time zone")
    try:
        check_zone(str(timezone))
    except ConfigError as problem:
        raise ValueError(f"names a time zone that cannot be used: {problem}") from None
    dim = manifest.dim
    return {
        TIME: (KNOTS, dim),
        _NOTHING: (dim,),
        _HOURS: (HOURS, dim),
        _DAYS: (DAYS, dim),
    }


class TimeInputs:
    """T for one student. weights: with the arrays of `shapes_of_time`."""

    def __init__(self, weights: Arrays, timezone: str, kernels: ModuleType) -> None:
        parts = weights[_NOTHING][None], weights[TIME], weights[_HOURS], weights[_DAYS]
        self._table = np.concatenate(parts)
        self._zone, self._kernels = zone_named(timezone), kernels

    def added(self, user: Floats, last: float, now: float) -> Floats:
        """Return U f_u + T, (dim,). user: U f_u; last: when the last event of the user happened,
        NEVER without one; now: when the question is asked; both in seconds since 1970, of which
        whole ones count.
        """
        asked = math.floor(now)
        gap = -1.0 if last == NEVER else float(max(asked - math.floor(last), 0))
        out = np.empty_like(user)
        local = float(asked + self._zone.offset(asked))
        self._kernels.add_time(user, self._table, gap, local, out)
        return out


def time_inputs_in(manifest: Manifest, weights: Arrays, kernels: ModuleType) -> TimeInputs | None:
    """Return the time inputs of a bundle, None for a student without them."""
    timezone = manifest.timezone
    return None if timezone is msgspec.UNSET else TimeInputs(weights, timezone, kernels)
