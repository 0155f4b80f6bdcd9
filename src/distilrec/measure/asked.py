"""Histories as the engine sees them: what stands for a user in an answer at the time of the
question.
"""

from __future__ import annotations

from distilrec.data.dataset import Histories
from distilrec.engine.golden import asked_after
from distilrec.engine.items import Floats
from distilrec.engine.runtimes.runtime import Runtime


def user_asked(runtime: Runtime, user: Floats, histories: Histories, k: int) -> Floats:
    """Return what stands for U f_u, `user`, when the k-th user is asked for the next event,
    (dim,).
    """
    if runtime.context_table is not None and histories.context is not None:
        context = histories.context
        user = user + context.weights[k] @ runtime.context_table[context.columns[k]]
    if not runtime.timed:
        return user
    assert histories.times is not None and histories.now is not None  # else no answer depends on it
    start, stop = histories.offsets[k], histories.offsets[k + 1]
    return asked_after(runtime, user, histories.times[start:stop].tolist(), float(histories.now[k]))
