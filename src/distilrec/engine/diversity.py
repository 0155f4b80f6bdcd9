"""Lists of items that are less alike."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from distilrec.engine.items import Floats, Places
from distilrec.engine.runtimes.runtime import Runtime


def pool_of(k: int) -> int:
    """Return how many of the best items a diversified list of k is chosen from."""
    return max(50, 5 * k)


def diversified(
    runtime: Runtime,
    kernels: ModuleType,
    places: Places,
    scores: Floats,
    k: int,
    diversity: float,
) -> Places:
    """Return which k of these items to show, best first, as places in the list, (k,) int32.

    Maximal marginal relevance. kernels: as of `loops_of`; diversity: from 0 (by score) to 1 (by
    unlikeness).
    """
    chosen = np.empty(k, np.int32)
    if k:
        span = max(float(scores[0] - scores[-1]), 1e-9)
        relevance = (scores - scores[-1]) / np.float32(span)
        kernels.diversify(runtime.item_vectors(places), relevance, np.float32(diversity), chosen)
    return chosen
