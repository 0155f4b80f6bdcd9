"""The loops of the engine, compiled and in numpy, against the equations."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.engine import kernels as compiled
from distilrec.engine.items import TILE
from distilrec.engine.loops import loops_of

SIZES = st.sampled_from([1, 2, 31, 32, 33, 64, 97])  # groups of 32 are compared at once


@pytest.fixture(scope="module", params=["numba", "numpy"])
def kernels(request):
    return loops_of(request.param)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), items=SIZES, k=st.sampled_from([1, 2, 10, 40, 100]))
def test_top_k_is_a_stable_sort_without_the_seen_and_the_masked(kernels, seed, items, k):
    rng = np.random.default_rng(seed)
    values = rng.integers(-5, 6, items).astype(np.float32)  # integers: many ties
    seen = rng.integers(items, size=rng.integers(items + 1)).astype(np.int32)
    mask = (rng.random(items) < 0.7).astype(np.uint8) if seed % 2 else np.zeros(0, np.uint8)
    expected = values.copy()
    expected[seen] = -np.inf
    if len(mask):
        expected[mask == 0] = -np.inf
    order = [item for item in np.argsort(-expected, kind="stable") if np.isfinite(expected[item])][
        :k
    ]
    found_items, found_scores = np.full(k, -7, np.int32), np.zeros(k, np.float32)
    found = kernels.top_k(values, seen, mask, k, found_items, found_scores)
    assert found_items[:found].tolist() == order
    assert found_scores[:found].tolist() == expected[order].tolist()
    np.testing.assert_array_equal(values, expected)  # left out means overwritten


@settings(deadline=None)
@given(seed=st.integers(0, 1_000), cut=st.integers(0, 20), dim=st.sampled_from([1, 4, 16, 33]))
def test_folding_in_two_parts_is_folding_at_once(kernels, seed, cut, dim):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, dim)).astype(np.float32)
    gain = rng.normal(size=(3, dim)).astype(np.float32)
    decay = rng.uniform(0.1, 0.99, (2, dim)).astype(np.float32)
    scale = np.sqrt(1 - decay**2)
    items, events = (
        rng.integers(30, size=20).astype(np.int32),
        rng.integers(3, size=20).astype(np.int32),
    )
    whole, parts = np.zeros((3, dim), np.float32), np.zeros((3, dim), np.float32)
    kernels.fold_recurrent(whole, items, events, vectors, gain, decay, scale)
    for some in (slice(0, cut), slice(cut, 20)):
        kernels.fold_recurrent(parts, items[some], events[some], vectors, gain, decay, scale)
    np.testing.assert_array_equal(whole, parts)
    one = np.zeros((3, dim), np.float32)
    kernels.fold_recurrent(one, items[:1], events[:1], vectors, gain, decay, scale)
    np.testing.assert_array_equal(one[2], vectors[items[0]])
    state = np.zeros((2, dim), np.float64)
    for item, event in zip(items, events, strict=True):
        state = decay * state + scale * gain[event] * vectors[item]
    np.testing.assert_allclose(whole[:2], state, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(whole[2], vectors[items[-1]])


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1_000),
    dim=st.sampled_from([8, 32]),
    items=st.sampled_from([1, 50, 2_048, 5_000]),
)
def test_scores(kernels, seed, dim, items):
    rng = np.random.default_rng(seed)
    query, readout = rng.normal(size=(2, dim)).astype(np.float32)
    vectors, biases = (
        rng.normal(size=(items, dim)).astype(np.float32),
        rng.normal(size=items).astype(np.float32),
    )
    out = np.empty(items, np.float32)
    kernels.scores_dot(query, np.ascontiguousarray(vectors.T), biases, out)
    np.testing.assert_allclose(out, vectors @ query + biases, rtol=1e-4, atol=1e-4)
    kernels.scores_relu(query, readout, vectors, biases, out)
    np.testing.assert_allclose(
        out, np.maximum(query + vectors, 0) @ readout + biases, rtol=1e-4, atol=1e-4
    )


class Case:
    """Random arrays of a recurrent student, float32, and what plain numpy makes of them."""

    def __init__(self, seed, dim=5, scales=2, items=40, wide=6):
        rng = np.random.default_rng(seed)

        def normal(*shape):
            return rng.normal(size=shape).astype(np.float32)

        self.rng, self.dim, self.scales = rng, dim, scales
        self.vectors, self.biases, self.gain = normal(items, dim), normal(items), normal(3, dim)
        self.decay = rng.uniform(0.1, 0.99, (scales, dim)).astype(np.float32)
        self.scale = np.sqrt(1 - self.decay**2)
        known = (scales + 1) * dim
        self.weights = (
            normal(dim, scales * dim), normal(wide, known), normal(wide), normal(wide, dim), normal(dim), normal(dim),
            np.float32(1e-6),
        )  # fmt: skip
        self.state, self.user = normal(scales + 1, dim), normal(dim)
        self.seen = rng.choice(items, 7, replace=False).astype(np.int32)
        self.mask = (rng.random(items) < 0.7).astype(np.uint8)

    def query(self, state):
        mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon = self.weights
        latest = state[-1] + self.user
        known = np.concatenate([state[:-1].ravel(), latest])
        inner = known / np.sqrt((known**2).mean() + epsilon)
        hidden = widen @ inner + widen_bias
        raw = (
            latest
            + narrow_bias
            + mix @ known[: -self.dim]
            + narrow.T @ (hidden / (1 + np.exp(-hidden)))
        )
        return raw / np.sqrt((raw**2).mean() + epsilon) * outer

    def best(self, scores, k, seen, mask):
        """Items by score, equal ones in item order, without what was seen or does not pass the mask."""
        left = [i for i in range(len(scores)) if i not in seen and (len(mask) == 0 or mask[i])]
        return sorted(left, key=lambda item: (-scores[item], item))[:k]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000), dim=st.sampled_from([1, 3, 8]), scales=st.sampled_from([1, 2, 3])
)
def test_the_query_is_that_of_the_equations(kernels, seed, dim, scales):
    case = Case(seed, dim, scales)
    query = np.full(dim, 7, np.float32)
    kernels.query_recurrent(case.state, case.user, *case.weights, query)
    np.testing.assert_allclose(query, case.query(case.state), rtol=2e-3, atol=2e-4)
    nobody = np.zeros_like(case.user)  # nothing is known: only epsilon keeps the norms finite
    kernels.query_recurrent(np.zeros_like(case.state), nobody, *case.weights, query)
    case.user, known = nobody, case.user
    np.testing.assert_allclose(query, case.query(np.zeros_like(case.state)), rtol=2e-3, atol=2e-4)
    case.user = known
    states = np.stack([case.state, 2 * case.state, np.zeros_like(case.state)])
    queries = np.full((3, dim), 7, np.float32)
    kernels.queries_recurrent(states, case.user, *case.weights, queries)
    np.testing.assert_allclose(
        queries, [case.query(state) for state in states], rtol=2e-3, atol=2e-4
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), events=st.integers(0, 6), scales=st.sampled_from([1, 2]))
def test_the_state_without_an_event_is_a_fold_without_it(kernels, seed, events, scales):
    case = Case(seed, scales=scales)
    items = case.rng.integers(40, size=events).astype(np.int32)
    kinds = case.rng.integers(3, size=events).astype(np.int32)
    out = np.full((events, scales + 1, case.dim), 7, np.float32)
    kernels.without_each_recurrent(
        items, kinds, case.vectors, case.gain, case.decay, case.scale, out
    )
    for j in range(events):
        expected = np.zeros((scales + 1, case.dim))
        for n in range(events):
            if n != j:
                expected[:-1] = case.decay * expected[:-1] + case.scale * (
                    case.gain[kinds[n]] * case.vectors[items[n]]
                )
                expected[-1] = case.vectors[items[n]]
            # The event is left out of the log, not replaced by nothing: what came before it decays one step less.
        np.testing.assert_allclose(out[j], expected, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), events=st.integers(0, 6))
def test_the_mean_is_a_sum_and_a_number(kernels, seed, events):
    case = Case(seed)
    items = case.rng.integers(40, size=events).astype(np.int32)
    state = np.arange(case.dim + 1, dtype=np.float32)
    kernels.fold_mean(state, items, case.vectors)
    np.testing.assert_allclose(
        state[:-1], np.arange(case.dim) + case.vectors[items].sum(0), rtol=1e-4, atol=1e-4
    )
    assert state[-1] == case.dim + events


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), masked=st.booleans(), k=st.sampled_from([1, 5, 60]))
def test_every_search_finds_the_best(kernels, seed, masked, k):
    """In one call from the state, by rows, among candidates, among given items."""
    case = Case(seed, dim=5)
    mask = case.mask if masked else np.zeros(0, np.uint8)
    query = case.query(case.state).astype(np.float32)
    scores = case.vectors @ query + case.biases
    expected = case.best(scores, k, set(case.seen.tolist()), mask)
    nothing = np.zeros(0, np.int32)

    def check(found, items, values, wanted):
        assert items[:found].tolist() == wanted
        np.testing.assert_allclose(values[:found], scores[wanted], rtol=2e-3, atol=1e-3)

    def room():
        return np.full(k, -7, np.int32), np.full(k, np.nan, np.float32)

    columns = np.zeros((8, 40), np.float32)
    columns[:5] = case.vectors.T
    items, values = room()
    found = kernels.recommend_recurrent(
        case.state, case.user, *case.weights,
        columns, case.biases, case.seen, mask, k,
        np.zeros(8, np.float32), np.empty(40, np.float32), items, values,
    )  # fmt: skip
    check(found, items, values, expected)

    items, values = room()
    buffer = np.full(40, np.nan, np.float32)
    found = kernels.best_by_rows(
        query, case.vectors, case.biases, case.seen, mask, buffer, items, values
    )
    check(found, items, values, expected)

    candidates = case.rng.integers(40, size=25).astype(np.int32)  # some twice
    passing = [i for i in candidates.tolist() if i not in case.seen and (len(mask) == 0 or mask[i])]
    marked = np.zeros(40, np.uint8)
    items, values = room()
    found, near = kernels.best_of(
        query, case.vectors, case.biases, candidates, 10, case.seen, mask, marked, items, values
    )
    check(found, items, values, case.best(scores, k, set(range(40)) - set(passing), nothing))
    first = candidates[:10].tolist()
    assert near == len({i for i in passing if i in first})
    assert not marked.any()

    items, values = room()
    some = case.rng.choice(40, 9, replace=False).astype(np.int32)
    found = kernels.rescore(query, case.vectors, case.biases, some, items, values)
    check(found, items, values, case.best(scores, k, set(range(40)) - set(some.tolist()), nothing))


def test_equal_scores_keep_the_order_given_when_rescored(kernels):
    vectors, biases = np.zeros((6, 2), np.float32), np.array([1, 1, 2, 1, 1, 1], np.float32)
    items, values = np.zeros(4, np.int32), np.zeros(4, np.float32)
    assert (
        kernels.rescore(
            np.ones(2, np.float32), vectors, biases, np.array([5, 2, 0, 3], np.int32), items, values
        )
        == 4
    )
    assert items.tolist() == [2, 5, 0, 3]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 5, 60]))
def test_the_search_in_8_bits_finds_the_best(kernels, seed, k):
    case = Case(seed, dim=5)
    query = case.query(case.state).astype(np.float32)
    scores = case.vectors @ query + case.biases
    lengths = np.abs(case.vectors).max(1) / np.float32(127)
    integers = np.zeros((8, 40), np.int8)
    integers[:5] = np.rint(case.vectors / lengths[:, None]).T.astype(np.int8)
    items, values = np.full(k, -7, np.int32), np.full(k, np.nan, np.float32)
    found = kernels.best_quantised(
        query, integers, lengths, case.vectors, case.biases, case.seen, case.mask, 2 * k + 30,
        np.empty(TILE, np.int32), np.empty(40, np.float32), items, values,
    )  # fmt: skip
    assert items[:found].tolist() == case.best(scores, k, set(case.seen.tolist()), case.mask)
    np.testing.assert_allclose(values[:found], scores[items[:found]], rtol=2e-3, atol=1e-3)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1_000), items=st.sampled_from([1, 40, 4_096, 5_000]))
def test_scores_in_8_bits_are_exact(seed, items):
    rng = np.random.default_rng(seed)
    query = rng.integers(-127, 128, 16).astype(np.int8)
    columns = rng.integers(-127, 128, (16, items)).astype(np.int8)
    query[:2], columns[:2, 0] = 127, 127  # the largest products of two that must fit into 16 bits
    scales, biases = rng.random(items).astype(np.float32), rng.normal(size=items).astype(np.float32)
    out, sums = np.empty(items, np.float32), np.full(TILE, 7, np.int32)
    compiled.scores_quantised(query, columns, scales, biases, np.float32(0.5), sums, out)
    exact = query.astype(np.int64) @ columns.astype(np.int64)
    np.testing.assert_allclose(out, 0.5 * scales * exact + biases, rtol=1e-5, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    diversity=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    k=st.integers(1, 8),
)
def test_diversified_lists_against_plain_python(kernels, seed, diversity, k):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(8, 3)).astype(np.float32)
    vectors[rng.integers(8)] = 0  # like nothing
    relevance = np.sort(rng.random(8))[::-1].astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    chosen = []
    while len(chosen) < k:
        likeness = (unit @ unit[chosen].T).max(1) if chosen else np.zeros(8)
        value = (1 - diversity) * relevance - diversity * likeness
        value[chosen] = -np.inf
        best = int(np.argmax(value))
        if np.sum(np.abs(value - value[best]) < 1e-5) > 1 and len(chosen):
            return  # too near to call
        chosen.append(best)
    found = np.full(k, -7, np.int32)
    kernels.diversify(vectors, relevance, np.float32(diversity), found)
    assert found.tolist() == chosen


_ANSWERS = """
import sys
from distilrec import load
recommender = load(sys.argv[1])
for user in recommender.some_users(5):
    for one in recommender.recommend(user, k=20) + recommender.recommend(user, ["i1", "i2"]):
        print(user, one.item_id, one.score.hex())
"""


@pytest.mark.slow
def test_answers_of_freshly_compiled_and_of_loaded_kernels_are_the_same_bits(
    finished_run, tmp_path
):
    """The first process compiles, the second one finds compiled code on disk."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _ANSWERS, str(finished_run.bundle)]
    said = [
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert len(said[0].splitlines()) > 20
