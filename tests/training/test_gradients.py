"""The gradients of a step do not depend on how many positions are scored at once, nor on the way that the softmax is
computed.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.distill.distillation import DistillationConfig, distillation_loss
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.batches import training_batches, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.training import gradients
from distilrec.training.gradients import add_gradients
from distilrec.training.kernels import cross_entropy
from distilrec.training.options import TrainingConfig
from distilrec.training.scoring import (
    GROUND_TRUTH,
    CrossEntropy,
    encode_positions,
    ground_truth,
    score_positions,
)
from distilrec.training.trained import train_model

pytestmark = pytest.mark.slow

NETWORKS = [
    RecurrentConfig(dim=8, max_history=12, dropout=0.0),
    RecurrentConfig(
        dim=8, max_history=12, dropout=0.0, neighbours=4, neighbour_events=3, repeat_events=5
    ),
    MlpConfig(dim=8, hidden=8, max_history=12, dropout=0.0),
    SoftTreeConfig(depth=2, inputs=5, max_history=12),
    TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=12, dropout=0.0),
]


@pytest.fixture(scope="module")
def labels(small, tmp_path_factory):
    teacher = train_model(NETWORKS[0], small, TrainingConfig(epochs=1), seed=0)
    return extract_labels(
        teacher,
        small,
        tmp_path_factory.mktemp("labels"),
        LabelConfig(top_k=5, samples=5, cold_items=False),
        seed=0,
    )


def step(network, dataset, loss, config, *, mask_seen=True, whole=False):
    """The loss of one batch and the gradient of every weight; whole: by torch alone, all positions at once."""
    model = build_model(network, dataset, 0).train()
    model.begin(dataset)
    batch = next(training_batches(dataset, training_windows(dataset, 12, 4), 16, None))
    popular = torch.ones(dataset.info.warm_items, dtype=torch.float64) / dataset.info.warm_items
    torch.manual_seed(0)
    positions = encode_positions(model, batch, config, mask_seen=mask_seen, drawn_by=popular)
    if whole:
        value = loss(score_positions(model, positions, 0.5)) + model.penalty()
        value.backward()
    else:
        value = add_gradients(model, positions, loss, 0.5)
    return float(value.detach()), {
        name: parameter.grad for name, parameter in model.named_parameters()
    }


def check_the_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name, gradient in other[1].items():
        ours = one[1][name]
        if gradient is None:
            assert ours is None or not ours.any(), name
        else:
            torch.testing.assert_close(ours, gradient, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("logits", [1, 2_000, 2**30], ids=["few", "some", "all"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
@pytest.mark.parametrize(
    "config", [TrainingConfig(), TrainingConfig(negatives=7)], ids=["catalogue", "sampled"]
)
@pytest.mark.parametrize("mask_seen", [True, False])
def test_the_ground_truth(small, monkeypatch, network, config, logits, mask_seen):
    monkeypatch.setattr(gradients, "_CPU_LOGITS", logits)
    whole = step(network, small, ground_truth, config, mask_seen=mask_seen, whole=True)
    for loss in (ground_truth, GROUND_TRUTH):
        check_the_same(step(network, small, loss, config, mask_seen=mask_seen), whole)


@pytest.mark.parametrize("logits", [1, 2**30], ids=["few", "all"])
@pytest.mark.parametrize(
    ("config", "fast"),
    [
        (DistillationConfig(), True),
        (DistillationConfig(soft_weight=1.0), True),
        (DistillationConfig(soft_weight=0.0, hard_weight=1.0, rrd_weight=0.5), False),
        (DistillationConfig(temperature=2.0), False),
    ],
)
@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("network", NETWORKS[:2], ids=["plain", "neighbours"])
def test_labels(small, labels, monkeypatch, network, config, fast, logits, mask_seen):
    monkeypatch.setattr(gradients, "_CPU_LOGITS", logits)
    loss = distillation_loss(labels, config)
    assert isinstance(loss, CrossEntropy) == fast
    # The labels know the seen items of their own; a training that scores seen items scores them too
    whole = step(network, small, loss, TrainingConfig(), mask_seen=mask_seen, whole=True)
    check_the_same(step(network, small, loss, TrainingConfig(), mask_seen=mask_seen), whole)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(2, 70),
    size=st.sampled_from([0.1, 3.0, 200.0]),
    masked=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_the_kernel_is_the_softmax(rows, columns, size, masked, threads, seed):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((size * rng.normal(size=(rows, columns))).astype(np.float32))
    first = torch.from_numpy(rng.integers(0, 9, (3, columns + 1)).astype(np.int16))
    window = torch.from_numpy(rng.integers(0, 3, rows))
    place = torch.from_numpy(rng.integers(0, 5, rows))
    first[:, 0] = 9  # one item is always left
    items = torch.from_numpy(rng.integers(0, columns, (rows, 4)))
    weights = torch.from_numpy(rng.random((rows, 4)).astype(np.float32))

    leaf = logits.double().requires_grad_()
    seen = (first[window][:, :columns] <= place.unsqueeze(1)) & masked
    log_softmax = torch.log_softmax(leaf.masked_fill(seen, -1e9), -1).gather(1, items)
    expected = -(weights * ~seen.gather(1, items) * log_softmax).sum() / rows
    expected.backward()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        value = cross_entropy(
            logits, first if masked else None, window, place, items, weights.clone(), 1 / rows
        )
    finally:
        torch.set_num_threads(before)
    assert value == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(logits.double(), leaf.grad, rtol=1e-4, atol=4e-6 / rows)


def test_what_is_not_a_number_stays_so():
    logits = torch.tensor([[1.0, float("nan"), 2.0]])
    zeros = torch.zeros(1, dtype=torch.int64)
    value = cross_entropy(logits, None, zeros, zeros, zeros.unsqueeze(1), torch.ones(1, 1), 1.0)
    assert np.isnan(value)


@pytest.mark.parametrize("item", [-1, 3])
def test_an_item_that_is_no_column_is_refused(item):
    zeros = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(IndexError, match=f"items {item} to {item} of 3 columns"):
        cross_entropy(
            torch.zeros(1, 3), None, zeros, zeros, torch.tensor([[item]]), torch.ones(1, 1), 1.0
        )


_ONE_STEP = """
import hashlib, torch
from distilrec.training.kernels import cross_entropy
from distilrec.training.scoring import Dense
draw = torch.Generator().manual_seed(0)
logits, teacher = (torch.randn(64, 300, generator=draw) for _ in range(2))
first = torch.randint(0, 20, (1, 300), generator=draw).to(torch.int16)
window, place = torch.zeros(64, dtype=torch.int64), torch.arange(64) % 20
items = torch.randint(0, 300, (64, 2), generator=draw)
for dense in (None, Dense(teacher, 0.5)):
    loss = cross_entropy(logits, first, window, place, items, torch.ones(64, 2), 1.0, dense)
    print(loss.hex(), hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


def test_compiled_code_gives_the_same_bits_when_it_is_loaded_again(tmp_path):
    """The first process compiles, the second one finds compiled code on disk."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", _ONE_STEP], env=environment, check=True, capture_output=True
        ).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert len(said[0].split()) == 4
