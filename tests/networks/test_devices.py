"""No tensor is made on a device of its own: everything runs where the model is, shown on torch's meta device.

A tensor on the meta device has a shape and no content. `one_device` refuses every operation that mixes such tensors with
those of the CPU, as most do on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distilrec.distill.distillation import DistillationConfig, distillation_loss
from distilrec.distill.losses import Projection
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.batches import training_batches, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.dnn import DnnConfig
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.training.options import TrainingConfig
from distilrec.training.schedule import average
from distilrec.training.scoring import encode_positions, ground_truth, score_positions
from distilrec.training.trained import train_model

NETWORKS = [
    TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=16),
    TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=16, gated=False),
    TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=16, time_bias=True),
    DnnConfig(dim=8, hidden=16, max_history=16),
    RecurrentConfig(dim=8, max_history=16),
    RecurrentConfig(dim=8, max_history=16, neighbours=4, neighbour_events=3, repeat_events=5),
    RecurrentConfig(dim=8, max_history=16, time=True, timezone="Europe/Berlin"),
    MlpConfig(dim=8, hidden=8, max_history=16),
    SoftTreeConfig(depth=2, inputs=5, max_history=16),
]
STUDENTS = [
    network for network in NETWORKS if not isinstance(network, TransformerConfig | DnnConfig)
]


class OneDevice(TorchDispatchMode):
    """Refuses operations over several devices, other than copies; a number (a tensor without dimensions) may come along."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = {
            leaf.device.type
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor) and leaf.ndim
        }
        if len(devices) > 1 and func.overloadpacket not in {
            torch.ops.aten._to_copy,
            torch.ops.aten.copy_,
        }:
            raise RuntimeError(f"{func} over {sorted(devices)}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_device():
    with OneDevice():
        yield


@pytest.fixture(scope="module")
def labels(small, tmp_path_factory):
    teacher = train_model(
        RecurrentConfig(dim=8, max_history=16), small, TrainingConfig(epochs=1), seed=0
    )
    return extract_labels(
        teacher,
        small,
        tmp_path_factory.mktemp("labels"),
        LabelConfig(top_k=5, samples=5, states=True),
        seed=0,
    )


def scored_on_meta(model, dataset, config, cold_items=False):
    batch = next(
        training_batches(dataset, training_windows(dataset, model.max_history, 4), 8, None)
    )
    popular = torch.ones(dataset.info.warm_items, dtype=torch.float64) / dataset.info.warm_items
    positions = encode_positions(
        model.to("meta").train(), batch, config,
        mask_seen=True, drawn_by=popular, cold_items=cold_items,
    )  # fmt: skip
    return score_positions(model, positions, 0.5)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
@pytest.mark.parametrize(
    "training",
    [
        TrainingConfig(),
        TrainingConfig(negatives=7),
        TrainingConfig(positions=5),
        TrainingConfig(item_dropout=0.2),
    ],
    ids=["whole", "sampled", "some positions", "item dropout"],
)
@pytest.mark.parametrize("cold_items", [False, True])
def test_a_training_step(small, one_device, network, training, cold_items):
    model = build_model(network, small, 0)
    scored = scored_on_meta(model, small, training, cold_items)
    loss = ground_truth(scored) + model.penalty()
    assert loss.device.type == scored.states.device.type == "meta"
    loss.backward()
    assert all(
        parameter.grad is None or parameter.grad.device.type == "meta"
        for parameter in model.parameters()
    )
    average(model, model, 0.9, 3)


LOSSES = [
    DistillationConfig(),
    DistillationConfig(temperature=2.0),
    DistillationConfig(hard_weight=1.0, rd_weight=1.0, rrd_weight=1.0, plackett_luce_weight=1.0),
    DistillationConfig(rce_weight=1.0, unkd_weight=1.0),
    DistillationConfig(hint_weight=1.0),
]


@pytest.mark.parametrize("network", STUDENTS, ids=lambda network: type(network).__name__)
@pytest.mark.parametrize("config", LOSSES, ids=["soft", "warm", "lists", "catalogue", "hint"])
@pytest.mark.parametrize("negatives", [0, 7])
def test_every_loss_with_labels(small, labels, one_device, network, config, negatives):
    if negatives and (config.rce_weight or config.unkd_weight):
        pytest.skip("these need the whole catalogue")
    model = build_model(network, small, 0)
    model.add_module("hint", Projection(model.state_dim, labels.state_width()))
    loss = distillation_loss(labels, config, model, small)
    value = loss(scored_on_meta(model, small, TrainingConfig(negatives=negatives)))
    assert value.device.type == "meta"
    value.backward()


def test_several_teachers(small, labels, one_device):
    model = build_model(STUDENTS[0], small, 0)
    loss = distillation_loss([labels, labels], DistillationConfig(curriculum=True), model, small)
    assert loss(scored_on_meta(model, small, TrainingConfig())).device.type == "meta"


def test_a_tensor_of_the_cpu_is_noticed(small, one_device):
    model = build_model(STUDENTS[0], small, 0).to("meta")
    batch = next(training_batches(small, training_windows(small, 16), 8, None))
    vectors = model.items.vectors()
    with pytest.raises(RuntimeError, match="over"):
        model.encode(batch, vectors)
