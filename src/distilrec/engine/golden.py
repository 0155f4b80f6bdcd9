"""The golden answers of a bundle: a machine that does not reproduce them must not serve it."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from msgspec import UNSET

from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import WEIGHTS, Golden, hidden_in
from distilrec.engine.diversity import diversified
from distilrec.engine.embedding import embed_bag
from distilrec.engine.items import Floats, Mask
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.time_inputs import NEVER
from distilrec.engine.visits import events_of_visit
from distilrec.errors import BundleCorruptedError

_TOLERANCE = 1e-4


def verify_golden(
    bundle: Bundle, runtime: Runtime, kernels: ModuleType, mask: Mask, *, approximate: bool
) -> None:
    """Answer the golden questions by every kernel, which also compiles them all before the first
    request.

    mask: of a question without a filter; approximate: whether the search may miss items. Raises
    BundleCorruptedError for other answers than those of the bundle.
    """
    for golden in bundle.manifest.golden:
        state = runtime.new_state()
        seen, kinds = np.array(golden.items, np.int32), np.array(golden.events, np.int32)
        runtime.fold(state, seen, kinds)
        user = user_of(golden, bundle, runtime)
        without = runtime.without_each(seen, kinds)
        runtime.scores_of(without, user, seen)
        scores = runtime.scores(runtime.query(state, user))
        hidden = np.array(hidden_in(golden, bundle.manifest), np.int32)
        places, best = runtime.best(state, user, hidden, mask, len(golden.top_items))
        diversified(runtime, kernels, places, best, len(places), 0.5)
        expected = np.array(golden.top_scores)
        # Whatever the search, its scores are exact; which items they are is only sure where it
        # looks at all.
        of_best = scores[places] if approximate else expected
        if not (_close(best, of_best) and _close(scores[list(golden.top_items)], expected)):
            raise BundleCorruptedError(
                f"{bundle.folder / WEIGHTS}: this machine does not reproduce the golden "
                "answers of the bundle "
                f"({best.tolist()[:3]} instead of {expected.tolist()[:3]})",
                fix="export the bundle again with this version of distilrec",
                file=str(bundle.folder),
            )


def user_of(golden: Golden, bundle: Bundle, runtime: Runtime) -> Floats:
    """Return what stands for the features of the user of a golden question, (dim,): U f_u, the
    context and the time where the student is told them.
    """
    user = embed_bag(golden.user_features, bundle.weights.user_table)
    if golden.context is not UNSET and runtime.context_table is not None:
        user = user + embed_bag(golden.context, runtime.context_table)
    if golden.times is UNSET or golden.now is UNSET:
        return user
    return asked_after(runtime, user, golden.times, golden.now)


def asked_after(runtime: Runtime, user: Floats, times: Sequence[float], now: float) -> Floats:
    """Return what stands for U f_u, `user`, in an answer after events at these times, oldest first,
    (dim,) or longer, see `Runtime.asked_at`.
    """
    visit = events_of_visit(times, runtime.visit_gap)
    return runtime.asked_at(user, times[-1] if times else NEVER, now, visit)


def _close(ours: Floats, theirs: Floats) -> bool:
    return len(ours) == len(theirs) and np.allclose(ours, theirs, _TOLERANCE, _TOLERANCE)
