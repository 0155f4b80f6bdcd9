"""The golden questions of a bundle, answered by the student in torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.bundle.manifest import CONTEXT, REPEATS, Golden
from distilrec.data.dataset import Dataset, Histories
from distilrec.features.encoding import CategoricalEncoding, FeatureMatrix, NumericEncoding
from distilrec.measure.ranking import Questions, rank
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.student import Student
from distilrec.offsets import offsets_of

_LENGTHS = (0, 1, 5, 20, 80)
_DEPTH = 10
_FIRST_TIME, _LOG_GAP = 1.6e9, 16.0  # seconds; gaps are up to e^16 of them, a hundred days


@dataclass(frozen=True, eq=False)
class _MadeUp:
    """Users who do not exist: no user data goes into the manifest.

    lengths: of their histories; columns: of their features, (users, n).
    """

    lengths: list[int]
    histories: Histories
    columns: NDArray[np.int32]


def golden_answers(student: Student, dataset: Dataset) -> list[Golden]:
    """Return questions about made-up users with the answers of the student."""
    users = _made_up(dataset)
    histories, count = users.histories, len(users.lengths)
    context = histories.context if CONTEXT in student.arrays() else None
    scorer = TorchScorer(_with_users(student, users))
    depth = min(_DEPTH, dataset.catalogue_size - max(users.lengths))
    hide = REPEATS not in student.arrays()
    asked = Questions(
        histories, np.arange(count + 1), np.zeros(count, np.int32), hide, 0, dataset.catalogue_size
    )
    top = rank(scorer, asked, depth).top
    scores = np.take_along_axis(scorer.scores(histories), top.astype(np.int64), 1)
    return [
        Golden(
            items=tuple(histories.of(n).tolist()),
            events=tuple(
                histories.events[histories.offsets[n] : histories.offsets[n + 1]].tolist()
            ),
            user_features=tuple((int(column), 1.0) for column in users.columns[n]),
            top_items=tuple(top[n].tolist()),
            top_scores=tuple(scores[n].tolist()),
            **(_times_of(histories, n) if student.timezone or student.visit_gap else {}),
            **({} if context is None else _context_of(context, n)),
        )
        for n in range(count)
    ]


def _made_up(dataset: Dataset) -> _MadeUp:
    rng = np.random.default_rng(0)
    lengths = [min(length, dataset.catalogue_size // 2) for length in _LENGTHS]
    items = np.concatenate(
        [
            rng.choice(dataset.catalogue_size, length, replace=False).astype(np.int32)
            for length in lengths
        ]
    )
    width = dataset.user_features.width
    columns = rng.integers(max(width, 1), size=(len(lengths), 2 if width else 0)).astype(np.int32)
    events = rng.integers(len(dataset.info.event_types), size=len(items)).astype(np.int32)
    offsets = offsets_of(lengths)
    times = _FIRST_TIME + np.cumsum(np.floor(np.exp(rng.uniform(0, _LOG_GAP, len(items)))))
    now = times.max(initial=_FIRST_TIME) + np.floor(np.exp(rng.uniform(0, _LOG_GAP, len(lengths))))
    context = None
    if dataset.context is not None:
        context = _made_up_context(dataset, len(lengths), rng)
    histories = Histories(np.arange(len(lengths)), offsets, items, events, times, now, context)
    return _MadeUp(lengths, histories, columns)


def _made_up_context(dataset: Dataset, count: int, rng: np.random.Generator) -> FeatureMatrix:
    """Return contexts of values that the training had, the first one unknown."""
    contexts: list[dict[str, object]] = [{}]
    for _ in range(count - 1):
        contexts.append({})
        for encoding in dataset.info.context_encoder.encodings:
            if isinstance(encoding, CategoricalEncoding) and encoding.values:
                contexts[-1][encoding.name] = str(rng.choice(encoding.values))
            elif isinstance(encoding, NumericEncoding):
                contexts[-1][encoding.name] = float(rng.choice(encoding.quantiles))
    return dataset.info.context_encoder.encode_rows(contexts)


def _context_of(context: FeatureMatrix, n: int) -> dict[str, Any]:
    """Return the context of a question, as a golden answer has it."""
    pairs = zip(context.columns[n].tolist(), context.weights[n].tolist(), strict=True)
    return {"context": tuple(pairs)}


def _times_of(histories: Histories, n: int) -> dict[str, Any]:
    """Return the times of a question, as a golden answer has them."""
    assert histories.times is not None and histories.now is not None
    own = histories.times[histories.offsets[n] : histories.offsets[n + 1]]
    return {"times": tuple(own.tolist()), "now": float(histories.now[n])}


def _with_users(student: Student, users: _MadeUp) -> Student:
    """Return a copy of the student whose users are these."""
    stand_in = copy.deepcopy(student)
    stand_in.max_history = max(users.lengths) + 1
    projection = stand_in.user_features
    projection.columns = torch.from_numpy(users.columns.astype(np.int64))
    projection.weights = torch.ones(users.columns.shape)
    projection.dense = None
    return stand_in
