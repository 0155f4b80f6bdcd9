"""Trainings on a GPU (`make test-gpu`); skipped where torch sees no CUDA device."""

from __future__ import annotations

import math

import pytest
import torch

from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import train_model
from tests.small_run import NETWORKS, STUDENT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason=f"torch {torch.__version__} sees no CUDA device"
    ),
]

TRAINING = TrainingConfig(epochs=2, batch_size=16)


def check(trained):
    """The losses are finite, and the weights are float32 on the CPU."""
    assert trained.record.curve
    assert all(math.isfinite(epoch.loss) for epoch in trained.record.curve)
    for tensor in trained.model.state_dict().values():
        assert tensor.device.type == "cpu"
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: type(config).__name__)
def test_every_network_trains_on_cuda(config, small):
    options = RunOptions(device="cuda", precision="float32")
    check(train_model(config, small, TRAINING, seed=0, options=options))


def test_labels_and_a_distillation_on_cuda(small, tmp_path):
    options = RunOptions(device="cuda", precision="float32")
    teacher = train_model(NETWORKS[0], small, TRAINING, seed=0, options=options)
    labels = extract_labels(
        teacher, small, tmp_path, LabelConfig(top_k=5, samples=5), seed=0, options=options
    )
    assert labels.extraction.labels > 0
    check(teacher)
    check(
        distill_model(
            STUDENT, small, labels, TRAINING, DistillationConfig(), seed=0, options=options
        )
    )


def test_a_training_in_bf16_on_cuda(small):
    options = RunOptions(device="cuda", precision="bf16")
    check(train_model(NETWORKS[0], small, TRAINING, seed=0, options=options))
