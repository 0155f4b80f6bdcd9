"""From a bundle to `student.drec`, the one file that web pages and devices load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET

from distilrec.bundle.drec import (
    MatrixPrecision,
    Rounding,
    compact,
    decode_drec,
    encode_drec,
    plain_manifest,
)
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import Golden, Manifest, hidden_in
from distilrec.engine.golden import asked_after, user_of
from distilrec.engine.items import Floats, Places
from distilrec.engine.loops import loops_of
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.errors import ConfigError
from distilrec.files import write_whole

KINDS = ("recurrent",)
"""The kinds of students that the web engine runs."""
_NO_MASK = np.zeros(0, np.uint8)
_QUESTIONS, _LONGEST, _BEST = 100, 20, 10


def write_drec(bundle: Bundle, file: Path | str, precision: MatrixPrecision = "half") -> Rounding:
    """Write the student of a bundle as one file, without data about users; return what the fewer
    bits change.

    precision: of matrices other than the item vectors, which have 8 bits in any case. The golden
    answers in the file are its own. Raises ConfigError for a kind of student that the web engine
    cannot run, for one that is told the time or a context or knows negative events, and for
    another precision.
    """
    kind = bundle.manifest.kind
    if kind not in KINDS:
        raise ConfigError(
            f"a student of kind {kind!r} cannot be exported for the web",
            fix=f"train a student of kind: {', '.join(KINDS)}",
            parameter="student.kind",
        )
    if bundle.manifest.timezone is not UNSET:
        raise ConfigError(
            "a student that is told the time cannot be exported for the web",
            fix="set time = false in [student], and train it again",
            parameter="student.time",
        )
    if bundle.manifest.context_encoder is not UNSET:
        raise ConfigError(
            "a student that is told a context cannot be exported for the web",
            fix="leave context_features out of [data.schema], and train it again",
            parameter="data.schema.context_features",
        )
    if bundle.manifest.negative_types:
        raise ConfigError(
            "a student that knows negative events cannot be exported for the web",
            fix="leave the negative events out of [targets], and train it again",
            parameter="targets",
        )
    if precision not in ("half", "float32"):
        raise ConfigError(
            f"there is no precision {precision!r}",
            fix='use one of: "half", "float32"',
            parameter="precision",
        )
    file = Path(file)
    arrays = compact(bundle, precision)
    manifest = plain_manifest(bundle.manifest)
    # Read again, so that what is measured is what the file holds.
    small = decode_drec(encode_drec(manifest, arrays, Rounding(0, 1.0, 0.0)), file)
    numpy = loops_of("numpy")
    exact, rounded = make_runtime(bundle, "exact", numpy), make_runtime(small, "exact", numpy)
    rounding = _measured(bundle.manifest, exact, rounded)
    golden = tuple(_answered(question, small, rounded) for question in manifest.golden)
    write_whole(
        file, encode_drec(msgspec.structs.replace(manifest, golden=golden), arrays, rounding)
    )
    return rounding


def _answered(question: Golden, bundle: Bundle, runtime: Runtime) -> Golden:
    """Return a golden question with the answer of this runtime."""
    state, items = runtime.new_state(), np.array(question.items, np.int32)
    runtime.fold(state, items, np.array(question.events, np.int32))
    user = user_of(question, bundle, runtime)
    hidden = np.array(hidden_in(question, bundle.manifest), np.int32)
    best, scores = runtime.best(state, user, hidden, _NO_MASK, len(question.top_items))
    return msgspec.structs.replace(
        question, top_items=tuple(best.tolist()), top_scores=tuple(scores.tolist())
    )


def _histories(m: Manifest, visit_gap: float) -> Iterator[tuple[Places, Places, Sequence[float]]]:
    """Yield items and events of made-up users, and the times of these events and of a question
    behind them: about every second of these begins a visit.
    """
    rng, clock = np.random.default_rng(0), np.random.default_rng(1)
    for _ in range(_QUESTIONS):
        length = int(rng.integers(1, min(_LONGEST, m.items) + 1))
        items = rng.choice(m.items, length, replace=False).astype(np.int32)
        events = rng.integers(len(m.event_types), size=length).astype(np.int32)
        gaps = clock.uniform(0, 2 * visit_gap, size=length + 1)
        yield items, events, np.cumsum(gaps).tolist()


def _measured(m: Manifest, exact: Runtime, rounded: Runtime) -> Rounding:
    """Return how far the answers of two runtimes are apart."""
    nothing = np.zeros(m.dim, np.float32)
    common = asked = 0
    largest = 0.0
    for items, events, (*times, now) in _histories(m, exact.visit_gap):
        scores = [
            _scores(runtime, items, events, asked_after(runtime, nothing, times, now))
            for runtime in (exact, rounded)
        ]
        largest = max(largest, float(np.abs(scores[0] - scores[1]).max()))
        count = min(_BEST, m.items - len(items))
        lists = [_best(of_one, items, count) for of_one in scores]
        common, asked = common + len(lists[0] & lists[1]), asked + count
    return Rounding(_QUESTIONS, common / max(asked, 1), largest)


def _scores(runtime: Runtime, items: Places, events: Places, user: Floats) -> Floats:
    state = runtime.new_state()
    runtime.fold(state, items, events)
    return runtime.scores(runtime.query(state, user))


def _best(scores: Floats, seen: Places, count: int) -> set[int]:
    unseen = scores.copy()
    unseen[seen] = -np.inf
    return set(np.argsort(-unseen, kind="stable")[:count].tolist())
