"""Time of one request, one user, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
import numpy as np


class Latency(msgspec.Struct, frozen=True):
    """Microseconds per request."""

    p50: float
    p99: float


Request = Callable[[int], object]


def measure(request: Request, requests: int, warm_up: int = 20) -> Latency:
    """Call `request(n)` for n = 0, 1, ... and time each call."""
    for n in range(warm_up):
        request(n)
    return _latency([_time(request, n) for n in range(requests)])


Name = TypeVar("Name")


def measure_side_by_side(
    requests: Mapping[Name, Request], count: int, together: int = 100
) -> dict[Name, Latency]:
    """Measure several models in one run, a few requests of each in turn, so that whatever else the
    machine does falls on all of them.
    """
    times: dict[Name, list[int]] = {name: [] for name in requests}
    for first in range(0, count, together):
        for name, request in requests.items():
            # What it needs is in the caches of the processor again.
            request(first)
            stop = min(first + together, count)
            times[name] += [_time(request, n) for n in range(first, stop)]
    return {name: _latency(of_one) for name, of_one in times.items()}


def _time(request: Request, n: int) -> int:
    began = time.perf_counter_ns()
    request(n)
    return time.perf_counter_ns() - began


def _latency(times: list[int]) -> Latency:
    return Latency(*(float(value) / 1e3 for value in np.quantile(times, [0.5, 0.99])))
