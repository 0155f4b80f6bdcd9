"""Histories as the engine sees them: what stands for a user in an answer at the time of the
question.
"""

from __future__ import annotations

from distilrec.data.dataset import Histories
from distilrec.engine.items import Floats
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.time_inputs import NEVER


def user_asked(runtime: Runtime, user: Floats, histories: Histories, k: int) -> Floats:
    """Return what stands for U f_u, `user`, when the k-th user is asked for the next event,
    (dim,).
    """
    if runtime.context_table is not None and histories.context is not None:
        context = histories.context
        user = user + context.weights[k] @ runtime.context_table[context.columns[k]]
    if not runtime.timed:
        return user
    assert histories.times is not None and histories.now is not None  # else none is told the time
    start, stop = histories.offsets[k], histories.offsets[k + 1]
    last = float(histories.times[stop - 1]) if stop > start else NEVER
    return runtime.asked_at(user, last, float(histories.now[k]))
