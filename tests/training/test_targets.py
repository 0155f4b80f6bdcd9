"""Training on targets: their weights, and the loss of negative events."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from distilrec.distill.distillation import DistillationConfig, distill_model, distillation_loss
from distilrec.errors import ConfigError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks import transitions
from distilrec.networks.batches import batch_of, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.targets import EventRole, Targets
from distilrec.testing.students import small_dataset
from distilrec.training import gradients
from distilrec.training.gradients import add_gradients
from distilrec.training.options import TrainingConfig
from distilrec.training.scoring import (
    GROUND_TRUTH,
    MASKED_LOGIT,
    Scored,
    encode_positions,
    ground_truth,
    score_positions,
    unlikelihood,
)
from distilrec.training.trained import train_model
from tests.data.test_targets import typed
from tests.training.test_gradients import NETWORKS

RETURNS = EventRole("return", role="negative")
WEIGHTED = Targets((EventRole("buy", loss_weight=3.0), EventRole("cart"), RETURNS))


def rows(seed=0):
    rng = np.random.default_rng(seed)
    kinds = ["buy", "cart", "view", "return"]
    return [
        (f"u{user}", f"i{item}", str(rng.choice(kinds)))
        for user in range(25)
        for item in rng.permutation(30)[: rng.integers(8, 20)]
    ]


@pytest.fixture(scope="module")
def weighted():
    return typed(rows(), WEIGHTED)


def encoded(network, dataset, config=None, negative_weight=1.0):
    """A fresh network, a batch of all windows, and its positions."""
    model = build_model(network, dataset, 0).train()
    model.begin(dataset)
    return model, *positions_of(model, dataset, config, negative_weight)


def positions_of(model, dataset, config=None, negative_weight=1.0):
    windows = training_windows(dataset, 12, 4)
    batch = batch_of(dataset, windows, np.arange(len(windows.starts)))
    warm = dataset.info.warm_items
    return batch, encode_positions(
        model, batch, config or TrainingConfig(), mask_seen=True,
        drawn_by=torch.ones(warm, dtype=torch.float64) / warm, negative_weight=negative_weight,
    )  # fmt: skip


def test_the_loss_of_negative_events_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.5, 9.0], [0.0, MASKED_LOGIT, 3.0, 9.0]], requires_grad=True)
    nothing = torch.zeros(2)
    loss = unlikelihood(Scored(logits, torch.tensor([1, 2]), nothing, nothing, warm=3))
    likely = torch.softmax(logits[:, :3], 1)[[0, 1], [1, 2]]
    torch.testing.assert_close(loss, -torch.log(1 - likely).mean())
    loss.backward()
    assert (logits.grad[[0, 1], [1, 2]] > 0).all()  # a step makes the unwanted items less likely
    assert torch.isfinite(logits.grad).all() and not logits.grad[:, 3].any()
    certain = torch.tensor([[60.0, 0.0]], requires_grad=True)
    unlikelihood(Scored(certain, torch.tensor([0]), nothing, nothing, warm=2)).backward()
    assert torch.isfinite(certain.grad).all()


@pytest.mark.slow
@pytest.mark.parametrize("logits", [1, 2**30], ids=["few", "all"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
@pytest.mark.parametrize("loss", [ground_truth, GROUND_TRUTH], ids=["any", "one pass"])
def test_the_gradient_is_that_of_the_weighted_sum(weighted, monkeypatch, network, loss, logits):
    """(sum over targets of w L_y + alpha sum over negative events of L_n) / sum of w."""
    monkeypatch.setattr(gradients, "_CPU_LOGITS", logits)
    alpha = 0.7
    ours, _, positions = encoded(network, weighted, negative_weight=alpha)
    value = add_gradients(ours, positions, loss, 0.0)

    model, batch, _ = encoded(network, weighted)
    vectors, warm = model.items.vectors(), weighted.info.warm_items
    states = model.encode(batch, vectors)
    total, weight = torch.zeros(()), 0.0
    for window, place in (batch.rows >= 0).nonzero().tolist():
        row = int(batch.rows[window, place])
        kind, item = weighted.events[row], int(weighted.items[row])
        if item >= warm or not (weighted.roles.target | weighted.roles.negative)[kind]:
            continue
        user = weighted.user_rows()[row]
        had = weighted.items[weighted.offsets[user] : row]
        scores = model.score(states[window, place][None], vectors[:warm], model.items.bias)
        scores = scores.index_fill(1, torch.from_numpy(had[had < warm]).long(), MASKED_LOGIT)
        log_likely = functional.log_softmax(scores, 1)[0, item]
        if weighted.roles.target[kind]:
            total = total - weighted.roles.loss_weight[kind] * log_likely
            weight += float(weighted.roles.loss_weight[kind])
        else:
            total = total - alpha * torch.log1p(-torch.exp(log_likely))
    expected = total / weight + model.penalty()
    expected.backward()
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-4)
    for (name, mine), theirs in zip(ours.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None or not mine.grad.any(), name
        else:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=3e-6, msg=name)


def test_a_sampled_softmax_has_the_negative_events_too(weighted):
    config = TrainingConfig(negatives=9)
    model, _, positions = encoded(NETWORKS[0], weighted, config)
    assert 0 < positions.wanted < len(positions)
    assert float(add_gradients(model, positions, ground_truth, 0.0)) > 0


def test_labels_are_of_targets_alone(weighted, tmp_path):
    network = RecurrentConfig(dim=8, max_history=12)
    teacher = train_model(network, weighted, TrainingConfig(epochs=1), seed=0)
    labels = extract_labels(teacher, weighted, tmp_path, LabelConfig(top_k=5, samples=5), seed=0)
    counted = weighted.target_rows()
    assert len(labels) == labels.extraction.events == len(counted) < len(weighted.training_rows())
    labels.at(torch.from_numpy(counted))
    loss = distillation_loss(labels, DistillationConfig())
    model, _, positions = encoded(network, weighted)
    assert float(add_gradients(model, positions, loss, 0.0)) > 0
    settings = DistillationConfig(rrd_weight=0.1)
    trained = distill_model(network, weighted, labels, TrainingConfig(epochs=1), settings, seed=0)
    assert np.isfinite(trained.record.curve[0].loss)


def test_the_term_of_negative_events_makes_them_less_likely(weighted):
    likely = []
    for weight in (0.0, 10.0):
        model, _, _ = encoded(RecurrentConfig(dim=8, dropout=0.0), weighted)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            _, positions = positions_of(model, weighted, negative_weight=weight)
            add_gradients(model, positions, GROUND_TRUTH, 0.0)
            optimizer.step()
        with torch.inference_mode():
            _, positions = positions_of(model.eval(), weighted)
            unwanted = positions.select(slice(positions.wanted, None))
            logits = score_positions(model, unwanted, 0.0).logits
            likely.append(
                float(torch.softmax(logits, 1).gather(1, unwanted.targets[:, None]).mean())
            )
    assert likely[1] < 0.5 * likely[0]


def test_a_negative_event_turns_a_history_away():
    """The last event enters with the opposite sign, in the first answer of an untrained student too."""
    dataset = small_dataset(Targets((EventRole("buy"), EventRole("view", role="negative"))))
    model = build_model(RecurrentConfig(dim=8), dataset, 0).eval()
    vectors = model.items.vectors()
    buy, view = (dataset.info.event_types.index(name) for name in ("buy", "view"))
    windows = training_windows(dataset, 2)
    batch = batch_of(dataset, windows, np.arange(1))
    for kind, sign in ((buy, 1), (view, -1)):
        batch.events[:] = kind
        torch.testing.assert_close(
            model.look_up(batch, vectors)[0, 1], sign * vectors[batch.items[0, 1]]
        )


@pytest.mark.parametrize("regressed", [True, False])
def test_neighbours_are_between_what_informs_and_targets(regressed, monkeypatch):
    if not regressed:
        monkeypatch.setattr(transitions, "REGRESSED_ITEMS", 0)
    log = [(f"u{n}", item, kind) for n in range(6)
           for item, kind in (("a", "view"), ("b", "return"), ("c", "buy"), ("d", "view"), ("e", "buy"), ("f", "buy"))]  # fmt: skip
    dataset = typed(log, Targets((EventRole("buy"), EventRole("view", role="inform"), RETURNS)))
    items = dataset.info.item_ids
    near, weights = transitions.largest_transitions(dataset, len(items), 5)[0]
    known = np.isfinite(weights) & ((weights != 0) | (not regressed))
    pairs = {(items[past], items[near[past, n]]) for past in range(len(near)) for n in range(near.shape[1]) if known[past, n]}  # fmt: skip
    assert pairs == {("a", "c")}  # e and f are held out, b is negative, and d only informs


def test_a_private_student_says_what_it_cannot(weighted):
    dpsgd = pytest.importorskip("distilrec.privacy.dpsgd")
    from distilrec.privacy.accounting import PrivateTrainingConfig

    with pytest.raises(ConfigError, match="neither a term of negative events nor weights"):
        dpsgd.train_private(
            RecurrentConfig(dim=8), weighted, PrivateTrainingConfig(steps=1), seed=0
        )
