"""Training a student on the ground truth and on the labels of one teacher or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.distill import losses
from distilrec.errors import ConfigError
from distilrec.knowledge.store import LabelStore, StoredLabels
from distilrec.models import OnEpoch, StudentConfig, TrainedModel, build_model, finished, training_task
from distilrec.students.soft_tree import SoftTreeConfig
from distilrec.training.model import SequenceModel
from distilrec.training.trainer import Loss, Scored, TrainingConfig, train


class DistillationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """L = (1 - soft_weight) L_y + soft_weight L_s + the others, each with its weight. All losses are means over positions.

    curriculum: with an ensemble as the teacher, keep the labels of each member and combine each position's soft losses by
    `losses.curriculum_loss`, instead of the labels of the average.
    rd, rrd, plackett_luce, rce, unkd, hint: the losses of `distilrec.distill.losses`; they read the first teacher.
    dropout: of the student while it is distilled, in place of its own: soft labels keep it from overfitting, and with
    dropout it cannot follow its teacher closely. Without distillation the student keeps its own.
    own_candidates: L of RCE, how many of the student's best items are candidates; groups: of popularity, for UnKD.
    """

    soft_weight: float = 0.6
    hard_weight: float = 0.0
    temperature: float = 1.0
    rd_weight: float = 0.0
    rrd_weight: float = 0.0
    plackett_luce_weight: float = 0.0
    rce_weight: float = 0.0
    unkd_weight: float = 0.0
    hint_weight: float = 0.0
    own_candidates: int = 50
    groups: int = 4
    curriculum: bool = False
    dropout: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.soft_weight <= 1:
            raise ConfigError(
                f"soft_weight is {self.soft_weight}", fix="use a number from 0 to 1", parameter="soft_weight"
            )
        for name in self.__struct_fields__:
            if name.endswith("_weight") and getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="use 0 or more", parameter=name)
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}", fix="use more than 0", parameter="temperature")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}", fix="use a share from 0 to below 1", parameter="dropout")
        for name in ("own_candidates", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="use at least 1", parameter=name)


def distil(
    config: StudentConfig,
    dataset: Dataset,
    labels: LabelStore | Sequence[LabelStore],
    training: TrainingConfig,
    distillation: DistillationConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedModel:
    """A student trained on the ground truth and on the stored labels of one teacher or several.

    Raises ConfigError for a combination that cannot work.
    """
    stores = _stores(labels)
    if training.negatives:
        raise ConfigError(
            "a sampled softmax has no logits for the teacher's items",
            fix="set negatives = 0 in student_training (the comparison without distillation uses the same setting)",
            parameter="negatives",
        )
    if distillation.dropout is not None and not isinstance(config, SoftTreeConfig):  # a tree has no dropout
        config = msgspec.structs.replace(config, dropout=distillation.dropout)
    model = build_model(config, dataset, seed)
    if distillation.hint_weight:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_module(_HINT, nn.Linear(model.state_dim, stores[0].state_width(), bias=False))
    loss = distillation_loss(stores, distillation, model, dataset)
    task = msgspec.json.encode((distillation, [each.manifest for each in stores])).decode()
    on_epoch = on_epoch or (lambda epoch, total: None)
    result = train(
        model,
        dataset,
        loss,
        training,
        seed=seed,
        checkpoint=checkpoint,
        task=training_task(dataset, config, task),
        on_epoch=on_epoch,
    )
    if distillation.hint_weight:
        delattr(model, _HINT)
    return finished(model, config, seed, dataset, result)


_HINT = "hint"  # the projection of the feature hint: a part of the student while it is trained, taken out afterwards


def distillation_loss(
    labels: LabelStore | Sequence[LabelStore],
    config: DistillationConfig,
    model: SequenceModel | None = None,
    dataset: Dataset | None = None,
) -> Loss:
    """The weighted sum of the losses that `config` asks for; `model` is needed for the hint, `dataset` for UnKD."""
    stores = _stores(labels)
    groups = None
    if config.unkd_weight:
        assert dataset is not None
        popular = torch.from_numpy(dataset.popularity()[: dataset.info.warm_items].astype(np.float64))
        groups = losses.popularity_groups(popular, config.groups)

    def loss(scored: Scored) -> torch.Tensor:
        student, t = scored.logits, config.temperature
        known = [store.at(scored.rows) for store in stores]
        first = known[0]
        log_student = torch.log_softmax(student / t, dim=-1)  # (positions, items), the costly step
        if t == 1.0:
            of_truth = functional.nll_loss(log_student, scored.targets)  # the same as ground_truth_loss
        else:
            of_truth = losses.ground_truth_loss(student, scored.targets)
        total = (1 - config.soft_weight) * of_truth
        if config.soft_weight:
            total = total + config.soft_weight * _soft(log_student, known, t, scored.progress)
        if config.hard_weight:
            total = total + config.hard_weight * losses.hard_loss(student, first.top_items[:, 0])
        if config.rd_weight:
            total = total + config.rd_weight * losses.ranking_distillation_loss(student, first)
        if config.rrd_weight:
            total = total + config.rrd_weight * losses.relaxed_ranking_loss(student, first)
        if config.plackett_luce_weight:
            total = total + config.plackett_luce_weight * losses.plackett_luce_loss(student, first)
        if config.rce_weight:
            total = total + config.rce_weight * losses.candidates_loss(student, first, t, config.own_candidates)
        if groups is not None:
            total = total + config.unkd_weight * losses.unbiased_loss(student, first, groups)
        if config.hint_weight:
            assert model is not None
            projection = model.get_submodule(_HINT)
            total = total + config.hint_weight * losses.hint_loss(
                projection(scored.states), stores[0].states_at(scored.rows)
            )
        return total

    return loss


def _stores(labels: LabelStore | Sequence[LabelStore]) -> list[LabelStore]:
    return [labels] if isinstance(labels, LabelStore) else list(labels)


def _soft(log_student: torch.Tensor, known: list[StoredLabels], temperature: float, progress: float) -> torch.Tensor:
    if len(known) == 1:
        return losses.soft_loss_stored(log_student, known[0], temperature)
    each = [losses.soft_losses_stored(log_student, labels, temperature) for labels in known]
    return losses.curriculum_loss(torch.stack(each, dim=-1), progress)
