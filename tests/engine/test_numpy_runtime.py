"""The runtime without numba answers as the compiled one does, and loads no numba."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.engine.filters import Condition, Filter
from distilrec.errors import ConfigError

USERS = st.sampled_from(["u1", "u7", "stranger", "new"])
ITEMS = st.integers(0, 44).map("i{}".format)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {"user_id": USERS, "item_id": ITEMS, "event_type": st.sampled_from(["view", "buy", "?"])}
    ),
    max_size=20,
)
FILTERS = st.none() | st.builds(
    lambda any_of, low, deny: Filter(
        attributes={"genres": Condition(any_of=any_of), "price": Condition(min=low)}, deny=deny
    ),
    st.none() | st.lists(st.sampled_from(["g0", "g1", "g2", "g9"]), max_size=3).map(tuple),
    st.none() | st.floats(0, 10),
    st.lists(ITEMS, max_size=5).map(tuple),
)


def assert_same(ours, theirs):
    """The same scores, and the same items where scores are not as near as rounding."""
    assert len(ours) == len(theirs)
    of = {answer.item_id: answer.score for answer in theirs}
    for own, other in zip(ours, theirs, strict=True):
        assert own.score == pytest.approx(other.score, rel=1e-4, abs=1e-4)
        if own.item_id != other.item_id and own.item_id in of:
            assert of[own.item_id] == pytest.approx(other.score, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=EVENTS, user=USERS, k=st.sampled_from([1, 10, 99]), where=FILTERS, age=st.integers(1, 99)
)
@pytest.mark.parametrize("search", ["exact", "quantised"])
def test_both_runtimes_answer_alike(bundle_copy, search, events, user, k, where, age):
    pair = [load(bundle_copy, search=search, runtime=name) for name in ("numba", "numpy")]
    for recommender in pair:
        recommender.set_user("new", {"age": age, "country": "de"})
        recommender.add_item("i44", {"genres": "g1|g2", "price": float(age)})
        recommender.update(events)
    for asked in ({}, {"exclude_seen": False}, {"diversity": 0.3}):
        assert_same(*(one.recommend(user, k=k, where=where, **asked) for one in pair))
    assert_same(*(one.recommend(user, ["i3", "i44", "i0"]) for one in pair))
    explained = [
        {each.place: each.contribution for each in one.explain(user, "i5", k=99)} for one in pair
    ]
    assert explained[0].keys() == explained[1].keys()
    for place, value in explained[0].items():
        assert explained[1][place] == pytest.approx(value, rel=1e-3, abs=1e-4)


def test_an_unknown_runtime_is_refused(bundle):
    with pytest.raises(ConfigError, match="there is no runtime 'jax'"):
        load(bundle, runtime="jax")


def test_it_needs_no_numba(bundle):
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from distilrec import load\n"
        "found = load(sys.argv[1], runtime='numpy').recommend('u1', k=3, diversity=0.2)\n"
        "print(*(answer.item_id for answer in found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = load(bundle).recommend("u1", k=3, diversity=0.2)
    assert done.stdout.split() == [answer.item_id for answer in expected]


def test_large_catalogues_are_sorted_in_two_steps():
    from distilrec.engine import kernels, plain_kernels

    rng = np.random.default_rng(0)
    scores = rng.integers(-50, 50, 10_000).astype(np.float32)  # many ties
    found = []
    for module in (kernels, plain_kernels):
        items, values = np.zeros(300, np.int32), np.zeros(300, np.float32)
        seen = np.arange(0, 10_000, 3, dtype=np.int32)
        assert module.top_k(scores.copy(), seen, np.zeros(0, np.uint8), 300, items, values) == 300
        found.append((items.tolist(), values.tolist()))
    assert found[0] == found[1]
