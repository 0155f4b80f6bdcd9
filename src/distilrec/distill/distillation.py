"""Training a model on the ground truth, and a student on a teacher's labels as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.distill.losses import ground_truth_loss, hard_loss, soft_loss_stored
from distilrec.errors import ConfigError
from distilrec.knowledge.store import LabelStore
from distilrec.models import ModelConfig, StudentConfig, TrainedModel, build_model, finished
from distilrec.training.trainer import Epoch, Loss, TrainingConfig, train

OnEpoch = Callable[[Epoch, int], None]


def _ignore(epoch: Epoch, total: int) -> None:
    pass


class DistillationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """L = (1 - soft_weight) L_y + soft_weight L_s + hard_weight L_h, with L_s at `temperature`."""

    soft_weight: float = 0.6
    hard_weight: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.soft_weight <= 1:
            raise ConfigError(
                f"soft_weight is {self.soft_weight}", fix="use a number from 0 to 1", parameter="soft_weight"
            )
        if self.hard_weight < 0:
            raise ConfigError(f"hard_weight is {self.hard_weight}", fix="use 0 or more", parameter="hard_weight")
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}", fix="use more than 0", parameter="temperature")


def train_model(
    config: ModelConfig,
    dataset: Dataset,
    training: TrainingConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch = _ignore,
) -> TrainedModel:
    """A teacher, or a student without distillation: trained on the ground truth alone."""
    return _train(config, dataset, lambda s, y, rows: ground_truth_loss(s, y), training, seed, checkpoint, "", on_epoch)


def distil(
    config: StudentConfig,
    dataset: Dataset,
    labels: LabelStore,
    training: TrainingConfig,
    distillation: DistillationConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch = _ignore,
) -> TrainedModel:
    """A student trained on the ground truth and on a teacher's stored labels."""
    task = msgspec.json.encode((distillation, labels.manifest)).decode()
    return _train(config, dataset, distillation_loss(labels, distillation), training, seed, checkpoint, task, on_epoch)


def distillation_loss(labels: LabelStore, config: DistillationConfig) -> Loss:
    """L = (1 - lambda) L_y + lambda L_s + mu L_h over the labels of a store."""

    def loss(student: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        known = labels.at(rows)
        log_student = torch.log_softmax(student / config.temperature, dim=-1)  # (positions, items), the costly step
        if config.temperature == 1.0:
            ground_truth = functional.nll_loss(log_student, targets)  # the same as ground_truth_loss(student, targets)
        else:
            ground_truth = ground_truth_loss(student, targets)
        total = (1 - config.soft_weight) * ground_truth
        if config.soft_weight:
            total = total + config.soft_weight * soft_loss_stored(log_student, known, config.temperature)
        if config.hard_weight:
            total = total + config.hard_weight * hard_loss(student, known.top_items[:, 0])
        return total

    return loss


def _train(
    config: ModelConfig,
    dataset: Dataset,
    loss: Loss,
    training: TrainingConfig,
    seed: int,
    checkpoint: Path | None,
    task: str,
    on_epoch: OnEpoch,
) -> TrainedModel:
    model = build_model(config, dataset, seed)
    whole_task = f"{dataset.fingerprint()} {msgspec.json.encode(config).decode()} {task}"
    result = train(model, dataset, loss, training, seed=seed, checkpoint=checkpoint, task=whole_task, on_epoch=on_epoch)
    return finished(model, config, seed, dataset, result)
