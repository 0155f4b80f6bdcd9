"""Lists of items that are less alike."""

from __future__ import annotations

import numpy as np

from distilrec.engine import kernels
from distilrec.engine.items import Floats, Places
from distilrec.engine.runtimes.runtime import Runtime


def diversified(
    runtime: Runtime, places: Places, scores: Floats, k: int, diversity: float
) -> Places:
    """Return which k of these items to show, best first, as places in the list, (k,) int32.

    Maximal marginal relevance. diversity: from 0 (by score) to 1 (by unlikeness).
    """
    chosen = np.empty(k, np.int32)
    if k:
        span = max(float(scores[0] - scores[-1]), 1e-9)
        relevance = (scores - scores[-1]) / np.float32(span)
        kernels.diversify(runtime.item_vectors(places), relevance, np.float32(diversity), chosen)
    return chosen
