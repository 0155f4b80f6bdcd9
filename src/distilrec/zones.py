"""Time zones: which names there are, and how far a clock there is from UTC."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from zoneinfo import ZoneInfo

from distilrec.errors import ConfigError

_DAY = 86_400
_LAST_DAY = 80 * 365  # counted from 1970: about 2050


@dataclass(frozen=True)
class Zone:
    """The clocks of a zone from 1970 to about 2050; before and after they stay as they are there.

    starts: seconds since 1970 from which a clock is `offsets` seconds ahead of UTC, rising.
    """

    starts: tuple[int, ...]
    offsets: tuple[int, ...]

    def offset(self, seconds: float) -> int:
        """Return how many seconds the clock is ahead of UTC at this time, in seconds since 1970."""
        return self.offsets[max(bisect_right(self.starts, seconds) - 1, 0)]


def check_zone(name: str) -> None:
    """Raise ConfigError for a name that is none of a time zone, or not on this machine."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(
            f"no time zone {name!r} is known",
            fix='use a name such as "UTC" or "Europe/Berlin"; where no name is known, install '
            "the package tzdata",
            parameter="timezone",
        ) from None


@cache
def zone_named(name: str) -> Zone:
    """Return the clocks of a zone. Raises ConfigError for a name that is none of a zone."""
    check_zone(name)
    zone = ZoneInfo(name)

    def offset(seconds: int) -> int:
        ahead = datetime.fromtimestamp(seconds, zone).utcoffset()
        assert ahead is not None
        return round(ahead.total_seconds())

    starts, offsets = [0], [offset(0)]
    for day in range(_LAST_DAY):
        before, after = day * _DAY, (day + 1) * _DAY
        if (changed := offset(after)) == offsets[-1]:
            continue
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (middle, after) if offset(middle) == offsets[-1] else (before, middle)
        starts.append(after)
        offsets.append(changed)
    return Zone(tuple(starts), tuple(offsets))
