"""Training a student on the ground truth and on the labels of one teacher or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.distill import losses
from distilrec.errors import ConfigError
from distilrec.labels.store import LabelStore, StoredLabels
from distilrec.measure.slices import item_groups
from distilrec.networks.build import StudentConfig, build_model
from distilrec.networks.sequence import SequenceModel
from distilrec.settings import Count, NotNegative, Positive, Settings, Share
from distilrec.training.options import TrainingConfig
from distilrec.training.scoring import Loss, Scored, ground_truth
from distilrec.training.trained import OnEpoch, TrainedModel, finished, training_task
from distilrec.training.trainer import train


class DistillationConfig(Settings, frozen=True):
    """L = (1 - soft_weight) L_y + soft_weight L_s + the others, each with its weight. All losses
    are means over positions.

    The losses are those of `distilrec.distill.losses`; those beside the soft and the hard loss read
    the first teacher.
    """

    soft_weight: Annotated[float, Meta(ge=0, le=1)] = 0.8
    """Weight of the soft loss, lambda; the ground truth has the rest."""
    hard_weight: NotNegative = 0.0
    """Weight of the hard loss, mu."""
    temperature: Positive = 1.0
    """Temperature of the soft labels, T."""
    rd_weight: NotNegative = 0.0
    """Weight of ranking distillation (RD)."""
    rrd_weight: NotNegative = 0.0
    """Weight of relaxed ranking distillation (RRD)."""
    plackett_luce_weight: NotNegative = 0.0
    """Weight of the Plackett-Luce loss."""
    rce_weight: NotNegative = 0.0
    """Weight of the candidate cross-entropy (RCE)."""
    unkd_weight: NotNegative = 0.0
    """Weight of unbiased distillation (UnKD)."""
    hint_weight: NotNegative = 0.0
    """Weight of the feature hint."""
    own_candidates: Count = 50
    """Best items of the student that are candidates of RCE."""
    groups: Count = 4
    """Groups of popularity of UnKD."""
    curriculum: bool = False
    """Whether the labels of each member of an ensemble are combined, the easiest first, in place of
    those of the average.
    """
    dropout: Share = 0.0
    """Dropout of the student while it is distilled; without distillation it has its own. A tree has
    none.
    """
    denoise: Share = 0.0
    """Share of events whose ground truth is left out, those that the teacher expected least."""


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
    if training.negatives and (distillation.rce_weight or distillation.unkd_weight):
        raise ConfigError(
            "RCE and UnKD need the logits of the whole catalogue, a sampled softmax has not got "
            "them",
            fix="set negatives = 0 in student_training, or rce_weight = 0 and unkd_weight = 0",
            parameter="negatives",
        )
    cold_items = stores[0].manifest.catalogue > dataset.info.warm_items
    if training.negatives and cold_items:
        raise ConfigError(
            "a sampled softmax draws no items without training rows, but the labels hold them",
            fix="set negatives = 0 in student_training, or cold_items = false in labels",
            parameter="negatives",
        )
    if "dropout" in config.__struct_fields__:
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
        cold_items=cold_items,
        on_epoch=on_epoch,
    )
    if distillation.hint_weight:
        delattr(model, _HINT)
    return finished(model, config, seed, dataset, result)


# The projection of the feature hint: a part of the student while it is trained, taken out
# afterwards
_HINT = "hint"


def distillation_loss(
    labels: LabelStore | Sequence[LabelStore],
    config: DistillationConfig,
    model: SequenceModel | None = None,
    dataset: Dataset | None = None,
) -> Loss:
    """The weighted sum of the losses that `config` asks for; the hint needs `model`, UnKD and
    denoising need `dataset`.
    """
    stores = _stores(labels)
    own_items = None if dataset is None else torch.from_numpy(dataset.items.astype(np.int64))
    groups = None
    if config.unkd_weight:
        assert dataset is not None
        groups = torch.from_numpy(
            item_groups(dataset.popularity()[: dataset.info.warm_items], config.groups)
        )

    def loss(scored: Scored) -> torch.Tensor:
        t = config.temperature
        device = scored.logits.device
        stored = [store.at(scored.rows, device) for store in stores]
        known = _views(scored, stored, t)
        student, log_student, first = known[0]
        if config.denoise:
            assert own_items is not None
            kept = losses.believed(stored[0], own_items[scored.rows].to(device), config.denoise)
            of_truth = ground_truth(
                replace(scored, logits=scored.logits[kept], targets=scored.targets[kept])
            )
        elif t == 1.0 and scored.sampled is None and scored.warm == scored.logits.shape[1]:
            of_truth = functional.nll_loss(log_student, scored.targets)  # the same as ground_truth
        else:
            of_truth = ground_truth(scored)
        total = (1 - config.soft_weight) * of_truth
        if config.soft_weight:
            total = total + config.soft_weight * _soft(known, t, scored)
        if config.hard_weight:
            plain = known[0] if t == 1.0 else _views(scored, stored[:1], 1.0)[0]
            total = total + config.hard_weight * losses.hard_loss(
                plain.log_student, plain.labels.top_items[:, 0]
            )
        if config.rd_weight:
            total = total + config.rd_weight * losses.ranking_distillation_loss(student, first)
        if config.rrd_weight:
            total = total + config.rrd_weight * losses.relaxed_ranking_loss(student, first)
        if config.plackett_luce_weight:
            total = total + config.plackett_luce_weight * losses.plackett_luce_loss(student, first)
        if config.rce_weight:
            total = total + config.rce_weight * losses.candidates_loss(
                student, first, t, config.own_candidates
            )
        if groups is not None:
            total = total + config.unkd_weight * losses.unbiased_loss(
                student, first, groups.to(device)
            )
        if config.hint_weight:
            assert model is not None
            projection = model.get_submodule(_HINT)
            total = total + config.hint_weight * losses.hint_loss(
                projection(scored.states), stores[0].states_at(scored.rows, device)
            )
        return total

    return loss


def _stores(labels: LabelStore | Sequence[LabelStore]) -> list[LabelStore]:
    return [labels] if isinstance(labels, LabelStore) else list(labels)


class _View(NamedTuple):
    """What the losses read: student logits (positions, items), log softmax(s / T) of the same
    shape, and the labels, whose items are columns of both.
    """

    student: torch.Tensor
    log_student: torch.Tensor
    labels: StoredLabels


def _views(scored: Scored, known: list[StoredLabels], temperature: float) -> list[_View]:
    """One view for the labels of each teacher.

    With a sampled softmax the columns are the items of the labels alone, and its log-sum-exp is
    that of the sample.
    """
    sampled, t = scored.sampled, temperature
    if sampled is None:
        log_student = torch.log_softmax(
            scored.logits / t, dim=-1
        )  # (positions, items), the costly step
        return [_View(scored.logits, log_student, labels) for labels in known]
    total = torch.logsumexp(
        (scored.logits - sampled.correction) / t + sampled.correction, -1, keepdim=True
    )
    views = []
    for labels in known:
        items = torch.cat([labels.top_items, labels.sample_items], dim=-1)  # (positions, K + M)
        student = sampled.logits_of(items)
        columns = torch.arange(items.shape[-1], device=items.device).expand_as(items)
        top = labels.top_items.shape[-1]
        local = replace(labels, top_items=columns[:, :top], sample_items=columns[:, top:])
        views.append(_View(student, student / t - total, local))
    return views


def _soft(known: list[_View], temperature: float, scored: Scored) -> torch.Tensor:
    catalogue = scored.sampled.catalogue if scored.sampled else None
    each = [
        losses.soft_losses_stored(view.log_student, view.labels, temperature, catalogue)
        for view in known
    ]
    if len(each) == 1:
        return each[0].mean()
    return losses.curriculum_loss(torch.stack(each, dim=-1), scored.progress)
