"""The loops of the engine against plain numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.engine import kernels


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=60),  # integers: many ties
    seen=st.lists(st.integers(0, 59), max_size=70),
    k=st.integers(1, 70),
)
def test_top_k_is_a_stable_sort_without_the_seen(scores, seen, k):
    values = np.array(scores, np.float32)
    masked = np.array([item for item in seen if item < len(scores)], np.int32)
    expected = values.copy()
    expected[masked] = -np.inf
    order = [item for item in np.argsort(-expected, kind="stable") if np.isfinite(expected[item])][:k]
    items, best = np.full(k, -7, np.int32), np.zeros(k, np.float32)
    found = kernels.top_k(values.copy(), masked, np.zeros(0, np.uint8), k, items, best)
    assert items[:found].tolist() == order
    assert best[:found].tolist() == expected[order].tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 1_000), cut=st.integers(0, 20), dim=st.sampled_from([1, 4, 16, 33]))
def test_folding_in_two_parts_is_folding_at_once(seed, cut, dim):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, dim)).astype(np.float32)
    gain = rng.normal(size=(3, dim)).astype(np.float32)
    decay = rng.uniform(0.1, 0.99, (2, dim)).astype(np.float32)
    scale = np.sqrt(1 - decay**2)
    items, events = rng.integers(30, size=20).astype(np.int32), rng.integers(3, size=20).astype(np.int32)
    whole, parts = np.zeros((3, dim), np.float32), np.zeros((3, dim), np.float32)
    kernels.fold_recurrent(whole, items, events, vectors, gain, decay, scale)
    for some in (slice(0, cut), slice(cut, 20)):
        kernels.fold_recurrent(parts, items[some], events[some], vectors, gain, decay, scale)
    np.testing.assert_array_equal(whole, parts)
    state = np.zeros((2, dim), np.float64)
    for item, event in zip(items, events, strict=True):
        state = decay * state + scale * gain[event] * vectors[item]
    np.testing.assert_allclose(whole[:2], state, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(whole[2], vectors[items[-1]])


@settings(deadline=None)
@given(seed=st.integers(0, 1_000), dim=st.sampled_from([8, 32]), items=st.sampled_from([1, 50, 2_048, 5_000]))
def test_scores(seed, dim, items):
    rng = np.random.default_rng(seed)
    query, readout = rng.normal(size=(2, dim)).astype(np.float32)
    vectors, biases = rng.normal(size=(items, dim)).astype(np.float32), rng.normal(size=items).astype(np.float32)
    out = np.empty(items, np.float32)
    kernels.scores_dot(query, np.ascontiguousarray(vectors.T), biases, out)
    np.testing.assert_allclose(out, vectors @ query + biases, rtol=1e-4, atol=1e-4)
    kernels.scores_relu(query, readout, vectors, biases, out)
    np.testing.assert_allclose(out, np.maximum(query + vectors, 0) @ readout + biases, rtol=1e-4, atol=1e-4)
