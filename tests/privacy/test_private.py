"""Differentially private training, private votes, and what a private bundle leaves out."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from distilrec import runs
from distilrec.bundle.format import read_bundle
from distilrec.data.dataset import load_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.errors import ConfigError, TeacherError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.batches import Windows, batch_of
from distilrec.networks.build import build_model
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.privacy import dpsgd as private
from distilrec.privacy.accounting import PrivateTrainingConfig
from distilrec.privacy.dpsgd import noise_for, train_private
from distilrec.privacy.votes import VoteConfig, private_votes, sigma_for
from distilrec.report.comparison import STUDENT
from distilrec.report.page import verdict
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import load_model, save_model, train_model
from tests.small_run import SCHEMA, small_config, tables, write_tables

pytestmark = [  # the accountant takes logarithms of 0 on purpose, and brackets its answer with another accountant
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Optimal order"),
]
STUDENT_CONFIG = RecurrentConfig(dim=8, dropout=0.0, max_history=16)
TRAINING = PrivateTrainingConfig(epsilon=5.0, steps=20, users_per_step=20, events=10)


@pytest.fixture(scope="module")
def plain():
    """The small data set without features that are derived from the log."""
    made = tables()
    return prepare_dataset(
        made["log"], SCHEMA, users=made["users"], items=made["items"], derived_features=False
    )


def latest(dataset):
    return private._latest_windows(dataset, 10)


def test_the_gradient_of_each_user_is_that_of_the_user_alone(plain):
    model = build_model(STUDENT_CONFIG, plain, 0)
    loss = private._UserLoss(model)
    some = np.array([0, 3, 7])
    values, gradients = private._user_gradients(
        loss, dict(model.named_parameters()), plain, latest(plain), some
    )
    for place, user in enumerate(some):
        batch = batch_of(plain, latest(plain), np.array([user]))
        model.zero_grad()
        states = model.encode(batch, model.items.vectors())[0]
        logits = model.score(
            states, model.items.vectors()[: plain.info.warm_items], model.items.bias
        )
        total, count = 0.0, 0
        for position, target in enumerate(batch.targets[0].tolist()):
            if target < 0:
                continue
            row = int(batch.rows[0, position])
            first = int(plain.offsets[batch.users[0]])
            allowed = np.setdiff1d(
                np.arange(plain.info.warm_items), np.setdiff1d(plain.items[first:row], [target])
            )
            total = total + logits[position, target] - torch.logsumexp(logits[position, allowed], 0)
            count += 1
        value = -total / count
        value.backward()
        assert float(values[place]) == pytest.approx(value.item(), rel=1e-5)
        for name, parameter in model.named_parameters():
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[name][place], own, rtol=1e-4, atol=1e-6)


def test_a_user_changes_the_counts_by_no_more_than_one(plain):
    windows = latest(plain)
    whole = private._counts(plain, windows, plain.info.warm_items)
    for user in range(len(windows.starts)):
        kept = np.arange(len(windows.starts)) != user
        fewer = Windows(
            *(getattr(windows, name)[kept] for name in ("starts", "scored", "stops", "users"))
        )
        change = np.linalg.norm(whole - private._counts(plain, fewer, plain.info.warm_items))
        assert change == pytest.approx(1.0)


def test_only_the_latest_events_of_a_user_are_learned_from(plain):
    windows = latest(plain)
    assert len(np.unique(windows.users)) == len(windows.users) == plain.info.warm_users
    assert (windows.stops == plain.train_end[windows.users]).all()
    assert (windows.stops - windows.starts <= 10).all()


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.5, 3.0, 20.0])
def test_the_noise_spends_what_was_asked_for_and_no_more(epsilon):
    spent = noise_for(epsilon, 1e-5, 0.1, 50)
    accountant = PRVAccountant()
    accountant.history = [(spent.noise_multiplier, 0.1, 50), (spent.count_noise, 1.0, 1)]
    assert accountant.get_epsilon(1e-5, eps_error=0.01 * epsilon) == pytest.approx(spent.epsilon)
    assert 0.9 * epsilon < spent.epsilon <= epsilon


@pytest.mark.slow
def test_more_privacy_is_more_noise():
    noise = [noise_for(epsilon, 1e-5, 0.1, 50).noise_multiplier for epsilon in (1.0, 4.0, 16.0)]
    assert noise == sorted(noise, reverse=True)
    assert noise_for(4.0, 1e-5, 0.1, 200).noise_multiplier > noise[1]


@pytest.mark.slow
def test_every_step_adds_the_noise_it_accounts_for(plain, monkeypatch):
    """With gradients of zero, what moves the weights is noise of the size that the record says."""
    seen = []
    zeros = private._user_gradients

    def without_gradients(*arguments):
        values, gradients = zeros(*arguments)
        return values, {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}

    monkeypatch.setattr(private, "_user_gradients", without_gradients)
    step = torch.optim.Adam.step

    def watched(self, *arguments, **more):
        seen.append(
            torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        )
        return step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    record = train_private(STUDENT_CONFIG, plain, TRAINING, seed=0).record.privacy
    noise = torch.cat(seen)
    assert len(seen) == record.steps == 20
    expected = record.noise_multiplier * record.clip_norm / record.users_per_step
    assert float(noise.std()) == pytest.approx(expected, rel=0.03)


@pytest.mark.slow
def test_it_does_not_matter_how_many_users_are_taken_at_once(plain, monkeypatch):
    """Clipped gradients are summed over the parts of a step, and noise is added once."""
    whole = train_private(STUDENT_CONFIG, plain, TRAINING, seed=0)
    monkeypatch.setattr(private, "_LOGITS", 7 * TRAINING.events * plain.info.warm_items)
    parts = train_private(STUDENT_CONFIG, plain, TRAINING, seed=0)
    for name, value in parts.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_private_student_says_what_was_spent(plain, tmp_path):
    said = []
    trained = train_private(
        STUDENT_CONFIG,
        plain,
        TRAINING,
        seed=0,
        options=RunOptions(on_epoch=lambda epoch, total: said.append(total)),
    )
    record = trained.record.privacy
    assert record.epsilon <= 5.0
    assert record.delta == pytest.approx(1 / (10 * plain.info.warm_users))
    assert "for all rows of one user" in str(record)
    assert set(said) == {20}
    save_model(trained, tmp_path)
    assert load_model(tmp_path, plain).record == trained.record
    again = train_private(STUDENT_CONFIG, plain, TRAINING, seed=0)
    assert again.record.identity == trained.record.identity
    assert (
        train_private(STUDENT_CONFIG, plain, TRAINING, seed=1).record.identity
        != trained.record.identity
    )


@pytest.mark.slow
def test_a_private_student_learns(plain):
    """With an epsilon that protects nobody the noise is small and the loss falls."""
    losses = []
    config = msgspec.structs.replace(TRAINING, epsilon=90.0, steps=60, learning_rate=2e-2)
    train_private(
        STUDENT_CONFIG,
        plain,
        config,
        seed=0,
        options=RunOptions(on_epoch=lambda epoch, total: losses.append(epoch.loss)),
    )
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.slow
def test_a_private_student_begins_with_that_of_volunteers(plain):
    volunteers, members = (plain.select_users(np.arange(plain.users)[half::2]) for half in (0, 1))
    start = train_model(STUDENT_CONFIG, volunteers, TrainingConfig(epochs=2), seed=0)
    barely = msgspec.structs.replace(TRAINING, learning_rate=1e-9)
    trained = train_private(STUDENT_CONFIG, members, barely, seed=0, start=start)
    for name, value in trained.model.state_dict().items():
        torch.testing.assert_close(value, start.model.state_dict()[name])
    assert trained.record.privacy.count_noise == 0.0
    without = train_private(STUDENT_CONFIG, members, barely, seed=0)
    assert without.record.privacy.noise_multiplier > trained.record.privacy.noise_multiplier
    other = train_model(
        RecurrentConfig(dim=4, max_history=16), volunteers, TrainingConfig(epochs=1), seed=0
    )
    with pytest.raises(ConfigError, match="another shape"):
        train_private(STUDENT_CONFIG, members, TRAINING, seed=0, start=other)


def test_what_cannot_be_private_is_refused(small, plain):
    with pytest.raises(ConfigError, match="popularity of the items"):
        train_private(STUDENT_CONFIG, small, TRAINING, seed=0)
    with pytest.raises(ConfigError, match="only the recurrent student"):
        train_private(MlpConfig(), plain, TRAINING, seed=0)
    with pytest.raises(ConfigError, match="come from the log without noise"):
        counted = msgspec.structs.replace(STUDENT_CONFIG, neighbours=4)
        train_private(counted, plain, TRAINING, seed=0)
    for wrong in ({"epsilon": 0.0}, {"delta": 2.0}, {"steps": 0}, {"averaging": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PrivateTrainingConfig(**wrong)
    with pytest.raises(ConfigError, match="cannot be accounted for"):
        noise_for(1e4, 1e-5, 0.3, 20)


@pytest.mark.slow
def test_a_run_with_privacy(tmp_path):
    write_tables(tmp_path)
    config = small_config(tmp_path)
    config = msgspec.structs.replace(
        config, privacy=TRAINING, data=msgspec.structs.replace(config.data, derived_features=False)
    )
    comparison = runs.run_all(config, tmp_path / "run")
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert (
        bundle.manifest.privacy
        == comparison.privacy
        == load_model(
            tmp_path / "run" / "student", load_dataset(tmp_path / "run" / "data")
        ).record.privacy
    )
    assert bundle.manifest.privacy.epsilon <= 5.0
    assert not bundle.catalogue.popularity.any()
    assert bundle.history.teacher_items is None
    assert "popularity" not in str(bundle.manifest.item_encoder)
    assert not (tmp_path / "run" / "labels").exists()
    assert read_bundle(tmp_path / "run" / "bundle-baseline").manifest.privacy is None
    assert "differentially private (epsilon" in verdict(comparison)[0]
    assert "differentially private" in (tmp_path / "run" / "report.html").read_text()
    assert 0 < comparison.row(STUDENT).quality["ndcg@10"].mean < 1


# --- votes ---


class Opinion:
    """Who scores every user alike."""

    def __init__(self, scores):
        self.of_all = np.asarray(scores, np.float32)

    def scores(self, histories):
        return np.tile(self.of_all, (len(histories), 1))


def everything(dataset):
    return np.tile(np.arange(dataset.info.warm_items), (dataset.info.warm_users, 1))


@settings(max_examples=20, deadline=None)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), top=st.integers(1, 10))
def test_one_voter_changes_a_histogram_by_no_more_than_the_noise_is_made_for(plain, seeds, top):
    config = VoteConfig(None, top=top)
    items = plain.info.warm_items
    others = [Opinion(np.random.default_rng(n).random(plain.catalogue_size)) for n in range(3)]
    counts = []
    for seed in seeds:
        mine = Opinion(np.random.default_rng(1000 + seed).random(plain.catalogue_size))
        votes = private_votes(
            [*others, mine],
            plain,
            msgspec.structs.replace(config, top=top),
            candidates=everything(plain),
            seed=0,
        )
        whole = np.zeros((plain.info.warm_users, items))
        np.put_along_axis(whole, votes.items, votes.counts, 1)
        counts.append(whole)
    # What is told are the winners; each vote is of length 1, so two of them differ by at most sqrt(2).
    assert (np.abs(counts[0]).max(1) <= 4 / np.sqrt(top) + 1e-9).all()
    own = [np.zeros(items) for _ in seeds]
    for vote, seed in zip(own, seeds, strict=True):
        scores = np.random.default_rng(1000 + seed).random(plain.catalogue_size)[:items]
        vote[np.argsort(-scores)[:top]] = 1 / np.sqrt(top)
    assert np.linalg.norm(own[0] - own[1]) <= np.sqrt(2) + 1e-9


def test_the_winners_are_those_that_most_teachers_name(plain):
    liked = np.zeros(plain.catalogue_size)
    liked[[3, 5]] = [2.0, 1.0]
    other = np.zeros(plain.catalogue_size)
    other[[5, 7]] = 1.0
    votes = private_votes(
        [Opinion(liked)] * 3 + [Opinion(other)],
        plain,
        VoteConfig(None, top=2),
        candidates=everything(plain),
        seed=0,
    )
    histories = plain.histories(
        np.arange(plain.info.warm_users), plain.train_end[: plain.info.warm_users]
    )
    for user in range(plain.info.warm_users):
        if not {3, 5, 7} & set(histories.of(user).tolist()):
            assert votes.items[user].tolist() == [5, 3]
            assert votes.counts[user].tolist() == pytest.approx([4 / np.sqrt(2), 3 / np.sqrt(2)])
        assert not set(votes.items[user].tolist()) & set(histories.of(user).tolist())


@pytest.mark.slow
def test_noise_grows_with_the_questions_and_with_the_privacy(plain):
    assert sigma_for(VoteConfig(None), 10) == 0.0
    assert sigma_for(VoteConfig(2.0), 10) > sigma_for(VoteConfig(8.0), 10)
    assert sigma_for(VoteConfig(8.0), 40) == pytest.approx(2 * sigma_for(VoteConfig(8.0), 10))
    accountant = PRVAccountant()
    # Asked one by one
    accountant.history = [(sigma_for(VoteConfig(8.0), 10) / np.sqrt(2), 1.0, 10)]
    assert accountant.get_epsilon(1e-5) == pytest.approx(8.0, rel=0.05)


@pytest.mark.slow
def test_a_student_learns_from_votes(plain, tmp_path):
    voters = [Opinion(np.random.default_rng(n).random(plain.catalogue_size)) for n in range(4)]
    votes = private_votes(
        voters, plain, VoteConfig(8.0, top=5), candidates=everything(plain)[:, :20], seed=0
    )
    assert votes.items.max() < 20
    again = private_votes(
        voters, plain, VoteConfig(8.0, top=5), candidates=everything(plain)[:, :20], seed=0
    )
    assert (again.items == votes.items).all()
    labels = extract_labels(
        votes.teacher(plain), plain, tmp_path, LabelConfig(top_k=5, samples=8), seed=0
    )
    assert (labels.hard_labels() == votes.items[:, 0]).all()
    trained = distill_model(
        STUDENT_CONFIG, plain, labels, TrainingConfig(epochs=2), DistillationConfig(0.5), seed=0
    )
    assert np.isfinite(trained.best_ndcg)


def test_votes_that_cannot_be_counted_are_refused(plain):
    voter = Opinion(np.zeros(plain.catalogue_size))
    with pytest.raises(TeacherError, match="1 voters"):
        private_votes([voter], plain, VoteConfig(), candidates=everything(plain), seed=0)
    with pytest.raises(TeacherError, match="cannot choose 10 items"):
        private_votes([voter] * 3, plain, VoteConfig(), candidates=everything(plain)[:, :4], seed=0)
    for wrong in ({"epsilon": 0.0}, {"delta": 1.0}, {"top": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            VoteConfig(**wrong)


# --- some users of a data set ---


def test_some_users_keep_their_rows(small):
    users = np.array([1, 4, small.users - 1])
    part = small.select_users(users)
    assert part.info.user_ids == tuple(small.info.user_ids[user] for user in users)
    assert part.info.warm_users == (users < small.info.warm_users).sum()
    for ends in ("train_end", "validation_end"):
        ours = part.histories(np.arange(3), getattr(part, ends))
        theirs = small.histories(users, getattr(small, ends)[users])
        assert (ours.items == theirs.items).all()
        assert (ours.offsets == theirs.offsets).all()
    assert (part.user_features.dense() == small.user_features.dense()[users]).all()
    assert part.popularity().sum() == (part.items[part.is_training()] >= 0).sum()
    assert small.select_users(np.arange(small.users)).fingerprint() == small.fingerprint()
