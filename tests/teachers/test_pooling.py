"""The weights of an ensemble: never below the best member on validation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.measure.ranking import questions
from distilrec.teachers import ensemble as ensembles
from distilrec.teachers.ensemble import pooled_ensemble
from distilrec.teachers.external import function_teacher
from distilrec.training.validation import validation_ndcg
from tests.small_run import dataset

SPLITS = {kind: dataset(kind) for kind in ("leave-one-out", "global-time")}


def member(data, seed, knows=0.0, noise=1.0, offset=0.0, digits=None):
    """A teacher that knows the held-out items as well as is said, and is wrong in its own way."""
    asked = questions(data, "validation")
    rng = np.random.default_rng(seed)
    scores = rng.normal(offset, noise, (data.users, data.info.warm_items))
    for k, user in enumerate(asked.histories.users):
        targets = asked.targets[asked.offsets[k] : asked.offsets[k + 1]]
        scores[user, targets[(targets >= 0) & (targets < data.info.warm_items)]] += knows
    scores = scores if digits is None else np.round(scores, digits)
    return function_teacher(
        lambda histories: scores[histories.users].astype(np.float32),
        data,
        identity=f"{seed} {knows} {noise} {offset} {digits}",
        per="user",
    )


MEMBERS = st.tuples(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([-50.0, 0.0]),
    st.sampled_from([None, 0]),  # with many equal scores
)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(sorted(SPLITS)),
    st.lists(MEMBERS, min_size=1, max_size=4, unique=True),
    st.integers(0, 3),
)
def test_an_ensemble_is_never_below_its_best_member(split, described, seed):
    data = SPLITS[split]
    members = [member(data, *one) for one in described]
    alone = [validation_ndcg(one, data) for one in members]
    ensemble = pooled_ensemble(members, data, seed)
    assert validation_ndcg(ensemble, data) == ensemble.pooling.together >= max(alone)
    assert ensemble.pooling.alone == tuple(alone)
    assert all(weight >= 0 for weight in ensemble.weights)
    assert any(ensemble.weights)


def test_nor_where_only_a_sample_of_the_users_is_asked_for_many_weights(small, monkeypatch):
    monkeypatch.setattr(ensembles, "_MOST_LOGITS", 5 * 3 * small.catalogue_size)
    for seed in range(5):
        members = [member(small, 3 * seed + n, knows=0.4) for n in range(3)]
        ensemble = pooled_ensemble(members, small, seed)
        alone = [validation_ndcg(one, small) for one in members]
        assert validation_ndcg(ensemble, small) >= max(alone)


def test_a_member_is_asked_once_about_each_user(small, monkeypatch):
    members, users = [member(small, n, knows=1.5) for n in range(3)], []

    def counted(scores):
        return lambda histories: users.extend(histories.users) or scores(histories)

    for one in members:
        monkeypatch.setattr(one, "scores", counted(one.scores))
    pooled_ensemble(members, small, 0)
    assert sorted(users) == sorted([*questions(small, "validation").histories.users] * 3)


def test_the_weights_are_the_same_each_time(small):
    members = [member(small, n, knows=1.0) for n in range(3)]
    first, second = (pooled_ensemble(members, small, 0) for _ in range(2))
    assert first.weights == second.weights


def test_members_that_know_different_things_are_better_together(small):
    members = [member(small, n, knows=1.5) for n in range(3)]
    ensemble = pooled_ensemble(members, small, 0)
    alone = [validation_ndcg(one, small) for one in members]
    assert all(ensemble.weights)
    assert validation_ndcg(ensemble, small) > max(alone) + 0.05


def test_a_member_that_only_harms_is_not_asked(small):
    noise = member(small, 1, knows=-1.0)  # says the contrary
    ensemble = pooled_ensemble([member(small, 0, knows=3.0), noise], small, 0)
    assert ensemble.weights == (1.0, 0.0)  # it teaches what it would teach by itself

    def refuse(histories):
        raise AssertionError("asked")

    noise.scores = refuse
    histories = small.histories(np.arange(3), small.train_end[:3])
    assert np.isfinite(ensemble.scores(histories)).all()


@pytest.mark.parametrize("seed", range(4))
def test_without_a_member_that_is_asked_the_ensemble_is_worse(small, seed):
    members = [member(small, 4 * seed + n, knows=1.5 * n % 3) for n in range(4)]
    ensemble = pooled_ensemble(members, small, 0)
    ndcg = validation_ndcg(ensemble, small)
    asked = np.flatnonzero(ensemble.weights)
    for out in asked if len(asked) > 1 else ():
        weights = [0.0 if n == out else weight for n, weight in enumerate(ensemble.weights)]
        assert validation_ndcg(ensembles.EnsembleTeacher(members, weights), small) < ndcg


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_the_scale_of_a_member_does_not_matter(small, factor):
    """A member whose scores are a hundred times as large gets a hundredth of the weight."""

    def scaled(one, by):
        return function_teacher(
            lambda histories: by * one.scores(histories)[:, : small.info.warm_items],
            small,
            identity=f"{by}",
            per="user",
        )

    members = [member(small, n, knows=1.5) for n in range(2)]
    plain = pooled_ensemble([scaled(one, 1.0) for one in members], small, 0)
    moved = pooled_ensemble([scaled(members[0], factor), scaled(members[1], 1.0)], small, 0)
    assert moved.weights[0] * factor == pytest.approx(plain.weights[0], rel=0.05)
    assert moved.weights[1] == pytest.approx(plain.weights[1], rel=0.05)
