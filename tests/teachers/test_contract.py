"""Every kind of teacher keeps the contract, and every kind of configuration has its row."""

from __future__ import annotations

from typing import get_args

import numpy as np
import polars as pl
import pytest
import torch

from distilrec.networks.transformer import TransformerConfig
from distilrec.targets import EventRole, Targets
from distilrec.teachers.build import TEACHERS, TeacherConfig
from distilrec.teachers.ease import EaseConfig, fit_ease
from distilrec.teachers.ensemble import EnsembleTeacher
from distilrec.teachers.external import function_teacher, user_scores
from distilrec.teachers.linear import LinearConfig, fit_linear
from distilrec.teachers.remembering import RememberingTeacher
from distilrec.teachers.teacher import ModelTeacher, move_teacher
from distilrec.testing.students import small_dataset
from distilrec.testing.teachers import TeacherContract
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests.small_run import in_visits


def network(data):
    config = TransformerConfig(dim=8, layers=1, feed_forward=16, max_history=12)
    return ModelTeacher(train_model(config, data, TrainingConfig(epochs=1, batch_size=16), seed=0))


def scored(data):
    users = data.info.user_ids[: data.info.warm_users]
    rows = [(user, item, float(k)) for user in users for k, item in enumerate(data.info.item_ids)]
    rows = [row for row in rows if row[2] < data.info.warm_items]
    return user_scores(pl.DataFrame(rows, ["user_id", "item_id", "score"], orient="row"), data)


def like_the_last_one(data):
    items = np.arange(data.info.warm_items)

    def function(histories):
        last = [histories.of(k)[-1] if len(histories.of(k)) else 0 for k in range(len(histories))]
        return 5.0 * (items % 3 == np.array(last)[:, None] % 3)

    return function_teacher(function, data, identity="like the last one")


class Small(TeacherContract):
    @pytest.fixture
    def dataset(self, small):
        return small


class TestNetwork(Small):
    @pytest.fixture
    def teacher(self, small):
        return network(small)


class WithTargets(TeacherContract):
    @pytest.fixture
    def dataset(self):
        views = EventRole("view", role="negative")
        return small_dataset(Targets((EventRole("buy"), views)))


class TestNetworkWithTargets(WithTargets):
    @pytest.fixture
    def teacher(self, dataset):
        return network(dataset)


class TestLinearWithTargets(WithTargets):
    @pytest.fixture
    def teacher(self, dataset):
        return fit_linear(LinearConfig(max_history=4), dataset, 0)


class TestEaseWithTargets(WithTargets):
    @pytest.fixture
    def teacher(self, dataset):
        return fit_ease(EaseConfig(ridge=30.0, max_history=4), dataset)


class TestLinear(Small):
    @pytest.fixture
    def teacher(self, small):
        return fit_linear(LinearConfig(), small, 0)


class TestLinearWithVisits(TeacherContract):
    @pytest.fixture
    def dataset(self, small):
        return in_visits(small)

    @pytest.fixture
    def teacher(self, dataset):
        teacher = fit_linear(LinearConfig(max_history=4), dataset, 0)
        assert len(teacher.weights) == 2 * dataset.info.warm_items
        return teacher


class TestScores(Small):
    @pytest.fixture
    def teacher(self, small):
        return scored(small)


class TestFunction(Small):
    @pytest.fixture
    def teacher(self, small):
        return like_the_last_one(small)


class TestEnsemble(Small):
    @pytest.fixture
    def teacher(self, small):
        return EnsembleTeacher([network(small), fit_linear(LinearConfig(), small, 0)], [0.5, 2.0])


class TestRemembering(Small):
    @pytest.fixture
    def teacher(self, small):
        users = np.arange(small.users) % 2 == 0
        return RememberingTeacher(fit_linear(LinearConfig(), small, 0), network(small), 0.4, users)


def test_every_configuration_of_a_teacher_has_one_row():
    rows = [config for kind in TEACHERS for config in kind.configs]
    assert len(set(rows)) == len(rows)
    assert set(rows) == set(get_args(TeacherConfig))


def test_the_networks_of_an_ensemble_move_to_a_device(small):
    teacher = EnsembleTeacher([network(small), fit_linear(LinearConfig(), small, 0)], [0.5, 2.0])
    move_teacher(teacher, torch.device("meta"))
    assert teacher.members[0].trained.model.device.type == "meta"
    assert teacher.members[0]._scorer.vectors.device.type == "meta"
