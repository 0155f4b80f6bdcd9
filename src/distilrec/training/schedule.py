"""Learning rate, weight decay and averaging of weights."""

from __future__ import annotations

import math

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from distilrec.networks.sequence import SequenceModel
from distilrec.training.options import TrainingConfig


@torch.no_grad()
def average(averaged: SequenceModel, model: SequenceModel, share: float, step: int) -> None:
    """Set `averaged` to share * averaged + (1 - share) * model, with a smaller share in the first
    steps.
    """
    share = min(share, (1 + step) / (10 + step)) if share else 0.0
    update = get_ema_multi_avg_fn(share)  # type: ignore[no-untyped-call]
    update(list(averaged.parameters()), list(model.parameters()), step)


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    done = step / max(config.epochs * steps_per_epoch, 1)
    return config.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * done))


def parameter_groups(model: SequenceModel, weight_decay: float) -> list[dict[str, object]]:
    """Return the parameters with weight decay on matrices only; gains and biases stay free."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
