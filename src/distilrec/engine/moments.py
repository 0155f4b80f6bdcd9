"""The times of questions and of events, checked."""

from __future__ import annotations

import math
import time
from numbers import Real

from distilrec.engine.order import MAX_CLOCK_SKEW
from distilrec.engine.users import User
from distilrec.errors import ConfigError


def checked_moment(seconds: object, parameter: str) -> float:
    """Return a time in seconds since 1970. Raises ConfigError for what is none, and for a time
    further ahead of the clock than clocks of senders may be.
    """
    number = float(seconds) if isinstance(seconds, Real) else math.nan
    if isinstance(seconds, bool) or not _is_possible(number, time.time()):
        raise ConfigError(
            f"{parameter} is {seconds!r}, which is not a time between 1970 and now (seconds)",
            fix="convert milliseconds to seconds, set the clock of the sender, or leave it out: "
            "then it is the time of the clock",
            parameter=parameter,
        )
    return number


def check_timestamp(when: float | None, now: float, where: str) -> None:
    """Raise ConfigError for a time that a past event cannot have. where: names the event."""
    if when is not None and not _is_possible(when, now):
        raise ConfigError(
            f"the timestamp {when} of {where} is not a time between 1970 and now (seconds)",
            fix="set the clock of the sender, convert milliseconds to seconds, or leave the "
            "timestamp out",
            parameter=f"{where}.timestamp",
        )


def check_not_before(now: float, user: User) -> None:
    """Raise ConfigError for a question from before the last event of a user, by more than clocks
    may differ: what is known of the user is from later.
    """
    if now < user.folded - MAX_CLOCK_SKEW:
        raise ConfigError(
            f"now is {now}, and the last event of this user happened later",
            fix="give a time after the user's events, or leave now out: then it is the time of the "
            "clock",
            parameter="now",
        )


def _is_possible(seconds: float, now: float) -> bool:
    """Return whether a time lies between 1970 and now, as far as clocks may differ."""
    return 0 <= seconds <= now + MAX_CLOCK_SKEW
