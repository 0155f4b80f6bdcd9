"""Time of one request, one user, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np


class Latency(msgspec.Struct, frozen=True):
    """Microseconds per request."""

    p50: float
    p99: float


def measure(request: Callable[[int], object], requests: int, warm_up: int = 20) -> Latency:
    """Call `request(n)` for n = 0, 1, ... and time each call."""
    for n in range(warm_up):
        request(n)
    times = np.empty(requests)
    for n in range(requests):
        began = time.perf_counter_ns()
        request(n)
        times[n] = time.perf_counter_ns() - began
    return Latency(*(float(value) / 1e3 for value in np.quantile(times, [0.5, 0.99])))
