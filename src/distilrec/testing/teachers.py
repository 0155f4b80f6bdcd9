"""Tests that every teacher must pass; a test class per kind of teacher inherits them.

They need the package pytest, and run in the test suite that imports them:

    class TestMyTeacher(TeacherContract):
        @pytest.fixture
        def dataset(self):
            return prepare_dataset("log.csv", Schema())

        @pytest.fixture
        def teacher(self, dataset):
            return function_teacher(my_scores, dataset, identity="mine")
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distilrec.data.dataset import Dataset
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.batches import Batch, training_batches, training_windows
from distilrec.teachers.teacher import Teacher

_CLOSE = 1e-4
_USERS = 7


class TeacherContract:
    """The contract of `distilrec.teachers.teacher.Teacher`. A subclass gives a prepared data set
    and a teacher for it.
    """

    @pytest.fixture
    def dataset(self) -> Dataset:
        """Return the data set of the test."""
        raise NotImplementedError

    @pytest.fixture
    def teacher(self, dataset: Dataset) -> Teacher:
        """Return the teacher to be tested."""
        raise NotImplementedError

    @pytest.fixture
    def asked(self, dataset: Dataset, teacher: Teacher) -> tuple[Batch, torch.Tensor, torch.Tensor]:
        """Return a batch of training windows, and windows and positions of its target events."""
        windows = training_windows(dataset, teacher.max_history)
        batch = next(training_batches(dataset, windows, _USERS, None))
        window, position = (batch.targets >= 0).nonzero(as_tuple=True)
        return batch, window, position

    def test_it_says_what_it_is(self, teacher: Teacher) -> None:
        assert isinstance(teacher.identity, str) and teacher.identity
        assert teacher.max_history >= 1
        assert teacher.state_dim >= 0
        assert isinstance(teacher.per_user, bool)
        assert teacher.cost.parameters is None or teacher.cost.parameters >= 0

    def test_scores_are_finite_and_of_the_whole_catalogue(
        self, dataset: Dataset, teacher: Teacher
    ) -> None:
        users = np.arange(min(_USERS, dataset.info.warm_users))
        scores = teacher.scores(dataset.histories(users, dataset.train_end[users]))
        assert scores.shape == (len(users), dataset.catalogue_size)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

    def test_scores_of_a_user_do_not_depend_on_the_others(
        self, dataset: Dataset, teacher: Teacher
    ) -> None:
        users = np.arange(min(_USERS, dataset.info.warm_users))
        histories = dataset.histories(users, dataset.train_end[users])
        together = teacher.scores(histories)
        for k in range(len(users)):
            alone = teacher.scores(histories.select(k, k + 1))[0]
            np.testing.assert_allclose(alone, together[k], rtol=_CLOSE, atol=_CLOSE)

    def test_an_answer_is_one_row_of_logits_for_each_position(
        self,
        dataset: Dataset,
        teacher: Teacher,
        asked: tuple[Batch, torch.Tensor, torch.Tensor],
    ) -> None:
        batch, window, position = asked
        warm = dataset.info.warm_items
        some = teacher.answer(batch, window, position, warm)
        whole = teacher.answer(batch, window, position, dataset.catalogue_size)
        assert some.logits.shape == (len(window), warm)
        assert whole.logits.shape == (len(window), dataset.catalogue_size)
        assert torch.isfinite(whole.logits).all()
        torch.testing.assert_close(
            whole.logits[:, :warm], some.logits, rtol=_CLOSE, atol=_CLOSE, check_dtype=False
        )
        if teacher.state_dim:
            assert some.states is not None
            assert some.states.shape == (len(window), teacher.state_dim)
        else:
            assert some.states is None

    def test_an_answer_is_the_scores_before_the_event(
        self,
        dataset: Dataset,
        teacher: Teacher,
        asked: tuple[Batch, torch.Tensor, torch.Tensor],
    ) -> None:
        """Where the window begins with the first event of the user, so that both see the same."""
        batch, window, position = asked
        first = batch.items[window, 0] == dataset.catalogue_size  # the start token
        if teacher.per_user:
            first = torch.ones_like(first)
        window, position = window[first], position[first]
        rows, users = batch.rows[window, position].numpy(), batch.users[window].numpy()
        answer = teacher.answer(batch, window, position, dataset.info.warm_items).logits
        expected = teacher.scores(dataset.histories(users, rows))[:, : dataset.info.warm_items]
        assert len(window)
        np.testing.assert_allclose(answer.cpu().numpy(), expected, rtol=1e-3, atol=1e-3)

    def test_labels_are_made_once_for_every_training_row(
        self, dataset: Dataset, teacher: Teacher, tmp_path: Path
    ) -> None:
        config = LabelConfig(top_k=3, samples=3)
        labels = extract_labels(teacher, dataset, tmp_path, config, seed=0)
        stored = labels.at(torch.from_numpy(dataset.target_rows()))
        assert torch.isfinite(stored.top_logits).all()
        assert (stored.top_items < dataset.info.warm_items).all()
        written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        again = extract_labels(teacher, dataset, tmp_path, config, seed=0)
        assert again.manifest == labels.manifest
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
