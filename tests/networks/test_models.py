"""One contract for all five models, and what is special to each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distilrec.data.dataset import Histories
from distilrec.errors import FileMissingError, TrainingError
from distilrec.networks.batches import prediction_batch, training_batches, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.dnn import DnnConfig
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.on_cpu import scan
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.soft_tree import SoftTreeConfig, describe_tree
from distilrec.networks.transformer import TransformerConfig
from distilrec.training.options import Epoch, TrainingResult
from distilrec.training.trained import SAVED, finished, load_model, save_model
from tests.small_run import dataset

CONFIGS = [
    RecurrentConfig(dim=8, scales=3, max_history=12),
    MlpConfig(dim=8, hidden=16, max_history=12),
    SoftTreeConfig(depth=3, inputs=10, max_history=12),
    TransformerConfig(dim=8, layers=2, feed_forward=16, max_history=12),
    DnnConfig(dim=8, hidden=16, layers=2, max_history=12),
]
every_model = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)


def history(data, *chosen, user=0):
    return Histories(
        np.array([user]),
        np.array([0, len(chosen)]),
        np.array(chosen, np.int32),
        np.ones(len(chosen), np.int32),
    )


@every_model
def test_same_seed_same_weights(config, small):
    one, two, other = (build_model(config, small, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@every_model
def test_building_leaves_the_global_randomness_alone(config, small):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_model(config, small, 1)
    assert torch.equal(torch.rand(1), expected)


@every_model
def test_the_future_does_not_change_the_past(config, small):
    model = build_model(config, small, 0).eval()
    vectors = model.items.vectors()
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    changed_items = batch.items.clone()
    changed_items[:, 6:] = (changed_items[:, 6:] + 1) % small.catalogue_size
    changed = dataclasses.replace(batch, items=changed_items)
    before, after = model.encode(batch, vectors), model.encode(changed, vectors)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@every_model
def test_padding_does_not_matter(config, small):
    """A history gets the same scores alone and beside a longer one."""
    scorer = TorchScorer(build_model(config, small, 0))
    alone = scorer.scores(history(small, 1, 2))
    both = Histories(
        np.array([0, 1]),
        np.array([0, 2, 9]),
        np.array([1, 2, *range(3, 10)], np.int32),
        np.ones(9, np.int32),
    )
    np.testing.assert_allclose(scorer.scores(both)[0], alone[0], rtol=1e-4, atol=1e-5)


@every_model
def test_user_features_and_history_matter(config, small):
    scorer = TorchScorer(build_model(config, small, 0))
    base = scorer.scores(history(small, 1, 2))
    assert base.shape == (1, small.catalogue_size)
    assert not np.allclose(base, scorer.scores(history(small, 1, 2, user=3)))
    assert not np.allclose(base, scorer.scores(history(small, 5, 2)))
    assert np.isfinite(scorer.scores(history(small))).all()


@every_model
def test_cold_items_are_scored_by_their_features(config, small):
    model = build_model(config, small, 0)
    cold = slice(small.info.warm_items, small.catalogue_size)
    assert small.catalogue_size - small.info.warm_items == 2
    vectors = model.items.vectors()
    torch.testing.assert_close(vectors[cold], model.items.features()[cold])
    assert (model.items.biases()[cold] == model.items.bias.min()).all()


@every_model
def test_save_and_load(config, small, tmp_path):
    model = build_model(config, small, 0)
    trained = finished(model, config, 0, small, TrainingResult((Epoch(1, 1.0, 0.1, 0.5),), 1))
    save_model(trained, tmp_path / "model")
    again = load_model(tmp_path / "model", small)
    assert again.record == trained.record
    one, two = (
        TorchScorer(model).scores(history(small, 1)),
        TorchScorer(again.model).scores(history(small, 1)),
    )
    np.testing.assert_array_equal(one, two)
    with pytest.raises(TrainingError, match="trained on another data set"):
        load_model(tmp_path / "model", dataset("global-time"))
    (weights,) = (tmp_path / "model").glob("model-*.safetensors")
    weights.write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"model-\w+\.safetensors has 7 bytes instead of"):
        load_model(tmp_path / "model", small)
    with pytest.raises(FileMissingError, match="train it first"):
        load_model(tmp_path / "nowhere", small)
    SAVED.write(tmp_path / "model", trained.record, {"model": {"of": np.zeros(3)}})
    with pytest.raises(TrainingError, match="another version of distilrec"):
        load_model(tmp_path / "model", small)


def test_scan_is_the_recurrence():
    torch.manual_seed(0)
    for length in (1, 2, 7, 16, 33):
        inputs, decay = torch.randn(3, length, 2, 5), torch.rand(2, 5)
        state, expected = torch.zeros(3, 2, 5), []
        for t in range(length):
            state = decay * state + inputs[:, t]
            expected.append(state)
        torch.testing.assert_close(
            scan(inputs, decay), torch.stack(expected, 1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("newest", [None, 0, 1, 7])
@pytest.mark.parametrize(("length", "context"), [(5, 0), (6, 3), (50, 25)])
def test_windows_score_every_training_row_once(small, length, context, newest):
    trained_from = None if newest is None else small.train_end - newest
    if newest:  # of one user all, and of another one none
        trained_from[1], trained_from[2] = 0, small.train_end[2]
    windows = training_windows(small, length, context, trained_from)
    rows = np.concatenate(
        [np.arange(a, b) for a, b in zip(windows.scored, windows.stops, strict=True)] or [[]]
    )
    scored = small.is_training()
    if trained_from is not None:
        scored &= np.arange(len(scored)) >= trained_from[small.user_rows()]
    assert sorted(rows) == np.flatnonzero(scored).tolist()
    assert len(rows) or newest == 0
    if newest == 0:
        return
    assert (windows.stops - windows.starts).max() <= length
    whole = windows.starts == small.offsets[windows.users]
    assert (windows.scored - windows.starts >= np.where(whole, 0, context)).all()
    batches = list(training_batches(small, windows, 7, np.random.default_rng(0)))
    seen = torch.cat([batch.rows[batch.rows >= 0] for batch in batches])
    assert sorted(seen.tolist()) == sorted(rows)
    padding = small.catalogue_size
    # The inputs up to each place, and the earlier ones, are exactly the rows before the target
    for batch in batches:
        for place, position in (batch.rows >= 0).nonzero().tolist():
            row = int(batch.rows[place, position])
            before = small.items[small.offsets[batch.users[place]] : row].tolist()
            inputs = batch.items[place, : position + 1]
            known = [*batch.earlier[place].tolist(), *inputs.tolist()]
            assert [item for item in known if item != padding] == before
            assert int(batch.targets[place, position]) == small.items[row]


def test_prediction_batches_keep_the_newest_events(small):
    batch = prediction_batch(history(small, 1, 2, 3, 4), small.catalogue_size, 3)
    assert batch.items.tolist() == [[2, 3, 4]]
    batch = prediction_batch(history(small, 1, 2), small.catalogue_size, 3)
    assert batch.items.tolist() == [[small.catalogue_size, 1, 2]]
    assert (batch.targets == 0).tolist() == [[False, False, True]]


def test_tree_paths_are_a_distribution_and_leaves_are_softmaxes(small):
    model = build_model(SoftTreeConfig(depth=3, inputs=10, max_history=12), small, 0).eval()
    scorer = TorchScorer(model)
    histories = history(small, 1, 2, 3)
    batch = prediction_batch(histories, small.catalogue_size, 12)
    with torch.inference_mode():
        paths = model.encode(batch, scorer.vectors)
    assert paths.shape[-1] == 8
    torch.testing.assert_close(paths.sum(-1), torch.ones(paths.shape[:-1]))
    # By hand, as Frosst and Hinton write it: the log of the mixture of the leaves.
    phi = scorer.vectors.numpy() + scorer.biases.numpy()[:, None]
    warm = small.info.warm_items
    leaves = np.exp(phi) / np.exp(phi[:warm]).sum(0)
    expected = np.log(leaves @ paths[0, 3].numpy())
    np.testing.assert_allclose(scorer.scores(histories)[0], expected, rtol=1e-4, atol=1e-5)
    assert np.exp(expected[:warm]).sum() == pytest.approx(1.0, rel=1e-4)


def test_the_balance_penalty_is_smallest_for_even_gates(small):
    model = build_model(SoftTreeConfig(depth=2, inputs=10, max_history=12), small, 0).train()
    batch = next(training_batches(small, training_windows(small, 12), 64, None))
    penalties = []
    for bias in (0.0, 4.0):
        with torch.no_grad():
            model.gates.zero_()
            model.user_features.table.zero_()
            model.gate_bias.fill_(bias)
        model.encode(batch, model.items.vectors())
        penalties.append(float(model.penalty().detach()))
    # Even gates: level 0 gives log 2, level 1 half of it, times the weight 0.1.
    assert penalties[0] == pytest.approx(0.1 * 1.5 * np.log(2), rel=1e-5)
    assert penalties[1] > penalties[0]
    assert float(model.penalty()) == 0.0  # each batch counts once


def test_a_tree_can_be_read(small):
    model = build_model(SoftTreeConfig(depth=2, inputs=5, max_history=12), small, 0).eval()
    everyone = np.arange(small.info.warm_users)
    batch = prediction_batch(
        small.histories(everyone, small.train_end[everyone]), small.catalogue_size, 12
    )
    tree = describe_tree(model, small, batch)
    assert tree.share == pytest.approx(1.0, rel=1e-5)
    assert sum(child.share for child in tree.children) == pytest.approx(1.0, rel=1e-5)
    leaves = [leaf for child in tree.children for leaf in child.children]
    assert len(leaves) == 4
    assert all(leaf.items and not leaf.questions for leaf in leaves)
    assert all(item in small.info.titles for item in leaves[0].items)
    assert all(question[0] in "+-" for question in tree.questions)


def test_item_dropout_leaves_the_features(small):
    tower = build_model(RecurrentConfig(dim=8), small, 0).items
    whole, features = tower.vectors(), tower.features()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        some = tower.vectors(left_out=0.5)
    left_out = (some == features).all(1)
    assert torch.equal(some[~left_out], whole[~left_out])
    assert 0 < int(left_out[: tower.warm_items].sum()) < tower.warm_items
    assert left_out[tower.warm_items :].all()


@every_model
def test_a_batch_of_histories_scores_each_as_it_is_scored_alone(config, small, monkeypatch):
    """Whatever their order and lengths, in several batches, one of them without an event."""
    monkeypatch.setattr("distilrec.networks.sequence._CPU_BATCH", 4)
    model = build_model(config, small, 0)
    rng = np.random.default_rng(0)
    users = rng.permutation(small.info.warm_users)[:11]
    histories = small.histories(users, small.offsets[users] + rng.integers(0, 30, len(users)) % (
        small.train_end[users] - small.offsets[users]
    ))  # fmt: skip
    assert len(set(np.diff(histories.offsets))) > 3
    scores = TorchScorer(model).scores(histories)
    vectors, biases = model.items.vectors(), model.items.biases()
    for number in range(len(users)):
        batch = prediction_batch(
            histories.select(number, number + 1), small.catalogue_size, model.max_history
        )
        with torch.inference_mode():
            state = model.eval().encode(batch, vectors)[batch.targets == 0]
            alone = model.score(state, vectors, biases)[0].numpy()
        np.testing.assert_allclose(scores[number], alone, rtol=1e-4, atol=1e-5)


def test_histories_are_taken_in_any_order(small):
    users = np.arange(7)
    histories = small.histories(users, small.train_end[users])
    chosen = np.array([4, 0, 4, 6])
    taken = histories.take(chosen)
    assert taken.users.tolist() == chosen.tolist()
    for number, user in enumerate(chosen):
        assert taken.of(number).tolist() == histories.of(int(user)).tolist()
    assert len(histories.take(np.zeros(0, np.int64))) == 0
