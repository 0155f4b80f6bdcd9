"""Training a student on the ground truth and on the labels of one teacher or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.distill.altered import Alteration
from distilrec.distill.losses import (
    TERMS,
    DistillationConfig,
    Step,
    Term,
    View,
    believed,
    soft_labels,
    soft_of,
)
from distilrec.distill.sources import AskedTeacher, Labels, Source, Stored, asked_teachers, sources
from distilrec.errors import ConfigError
from distilrec.labels.store import StoredLabels
from distilrec.measure.slices import item_groups
from distilrec.networks.build import StudentConfig, build_model
from distilrec.networks.orders import Orders
from distilrec.networks.sequence import SequenceModel
from distilrec.training.devices import resolve_device
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.scoring import (
    CrossEntropy,
    Dense,
    Loss,
    Mixture,
    MoreWindows,
    Objective,
    Positions,
    Scored,
    ground_truth,
    target_alone,
)
from distilrec.training.trained import TrainedModel, finished, training_task
from distilrec.training.trainer import train
from distilrec.training.warm import Start

__all__ = ["DistillationConfig", "distill_model", "distillation_loss"]


def distill_model(  # noqa: PLR0913 - a public name, whose arguments stay as they are
    config: StudentConfig,
    dataset: Dataset,
    labels: Labels | Sequence[Labels],
    training: TrainingConfig,
    distillation: DistillationConfig,
    *,
    seed: int,
    options: RunOptions | None = None,
    terms: Sequence[Term] = TERMS,
    start: Start | None = None,
) -> TrainedModel:
    """Train a student on the ground truth and on the labels of one teacher or several.

    labels: stored ones, or teachers that are asked (`AskedTeacher`) about the training windows.
    terms: the losses that `distillation` has weights for. start: the weights that the training
    begins with, and the rows it is trained on; fresh weights and all training rows by default.
    Raises ConfigError for settings that exclude each other.
    """
    label_sources, terms = sources(labels), _used(terms, distillation)
    options, teachers = options or RunOptions(), asked_teachers(label_sources)
    cold_items = label_sources[0].manifest.catalogue > dataset.info.warm_items
    if training.negatives:
        _check_sampled_softmax(terms, cold_items)
        if teachers and distillation.all_logits and distillation.soft_weight:
            raise ConfigError(
                "all_logits needs the logits of the whole catalogue, which a sampled softmax does "
                "not compute",
                fix="set negatives = 0 in student_training, or all_logits = false in distillation",
                parameter="negatives",
            )
    if "dropout" in config.__struct_fields__:
        config = msgspec.structs.replace(config, dropout=distillation.dropout)
    model = build_model(config, dataset, seed)
    if start is not None:
        start.load(model)
    _add_modules(model, terms, label_sources[0], seed)
    loss = distillation_loss(labels, distillation, model, dataset, terms)
    altered_windows = _altered(label_sources, distillation, dataset)
    task = msgspec.json.encode(
        (distillation, [source.manifest for source in label_sources])
    ).decode() + ("" if start is None else f" {start.key}")
    with _on_device(resolve_device(options.device), teachers):
        result = train(
            model,
            dataset,
            Objective(
                loss,
                cold_items,
                lambda: sum(teacher.seconds for teacher in teachers),
                altered_windows,
                _orders(label_sources),
                None if start is None else start.trained_from,
            ),
            _windows_for(training, model, teachers),
            seed=seed,
            task=training_task(dataset, config, task),
            options=options,
        )
    for term in terms:
        if term.module is not None:
            delattr(model, term.name)
    return finished(model, config, seed, dataset, result)


def distillation_loss(
    labels: Labels | Sequence[Labels],
    config: DistillationConfig,
    model: SequenceModel | None = None,
    dataset: Dataset | None = None,
    terms: Sequence[Term] = TERMS,
) -> Loss:
    """Return the sum of the ground truth loss and of the terms whose weight in `config` is not 0.

    model: has the weights of a term that has some, under its name; needed for such a term only.
    dataset: needed for popularity groups and denoising only.
    """
    label_sources, terms = sources(labels), _used(terms, config)
    modules = _modules(terms, model)
    groups = None
    if any("groups" in term.needs for term in terms):
        assert dataset is not None
        groups = torch.from_numpy(
            item_groups(dataset.popularity()[: dataset.info.warm_items], config.groups)
        )

    def loss(scored: Scored) -> torch.Tensor:
        device = scored.logits.device
        stored = [source.labels(scored) for source in label_sources]
        views = _views(scored, label_sources, stored, config, config.temperature)

        def plain() -> View:
            if config.temperature == 1.0:
                return views[0]
            return _views(scored, label_sources[:1], stored[:1], config, 1.0)[0]

        expected = None
        if config.denoise:
            assert dataset is not None
            rows = scored.rows.numpy() % len(dataset.items)
            items = torch.from_numpy(dataset.items[rows].astype(np.int64))
            expected = believed(stored[0], items.to(device), config.denoise)
        step = Step(
            config,
            scored,
            views,
            plain,
            None if groups is None else groups.to(device),
            lambda: label_sources[0].states(scored),
            modules,
        )
        total = (1 - config.soft_weight) * _ground_truth(step, expected)
        for term in terms:
            # Altered histories have the rest of the soft loss
            share = 1 - config.altered.share if term.name == "soft" else 1.0
            total = total + share * term.weight(config) * term.function(step)
        return total

    one_pass = config.temperature == 1.0 and not config.denoise and len(label_sources) == 1
    if one_pass and [term.name for term in terms] == ["soft"]:
        soft = (1 - config.altered.share) * config.soft_weight
        return _in_one_pass(loss, label_sources[0], config, 1 - config.soft_weight, soft)
    return loss


def _modules(terms: Sequence[Term], model: SequenceModel | None) -> dict[str, nn.Module]:
    """Return the weights of the terms that have some, by the name of the term."""
    modules = {}
    for term in terms:
        if term.module is not None:
            assert model is not None
            modules[term.name] = model.get_submodule(term.name)
    return modules


def _altered(
    label_sources: Sequence[Stored | AskedTeacher], config: DistillationConfig, dataset: Dataset
) -> MoreWindows | None:
    """Return the altered histories of a distillation with their soft loss; None where it has none.
    Raises ConfigError where they can have no labels or no loss.
    """
    weight = config.altered.share * config.soft_weight
    if not config.altered.share:
        return None
    if len(asked_teachers(label_sources)) < len(label_sources):
        raise ConfigError(
            "altered histories have no stored labels",
            fix='set labels = "asked" in [distillation], or share = 0 in [distillation.altered]',
            parameter="distillation.altered.share",
        )
    if not weight:
        raise ConfigError(
            "altered histories have only a soft loss, and its weight is 0",
            fix="set soft_weight above 0 in [distillation], or share = 0 in [distillation.altered]",
            parameter="distillation.altered.share",
        )
    for source in asked_teachers(label_sources):
        source.check_made_up()

    def loss(scored: Scored) -> torch.Tensor:
        stored = [source.labels(scored) for source in label_sources]
        views = _views(scored, label_sources, stored, config, config.temperature)
        return weight * soft_of(scored, views, config)

    alteration = Alteration(config.altered, dataset)
    if config.temperature == 1.0 and len(label_sources) == 1:
        return MoreWindows(alteration, _in_one_pass(loss, label_sources[0], config, 0.0, weight))
    return MoreWindows(alteration, loss)


def _in_one_pass(
    loss: Loss,
    source: Stored | AskedTeacher,
    config: DistillationConfig,
    of_truth: float,
    of_teacher: float,
) -> CrossEntropy:
    """Return a loss of soft labels at temperature 1 that is computed in one pass over the logits.

    of_truth, of_teacher: the weights of the ground truth and of the soft labels.
    """
    if isinstance(source, AskedTeacher) and config.all_logits:
        return CrossEntropy(
            loss,
            lambda positions: target_alone(positions, of_truth),
            lambda positions: Dense(source.logits(positions).clone(), of_teacher),
        )
    return CrossEntropy(
        loss,
        lambda positions: _mixture(positions, source, of_truth, of_teacher),
        by_chunk=isinstance(source, AskedTeacher),
    )


def _mixture(positions: Positions, source: Source, of_truth: float, of_teacher: float) -> Mixture:
    """Return the true next item and the items of the labels, with their weights in the loss."""
    stored = source.labels(positions)
    items, seen = stored.items(), positions.seen
    allowed = torch.ones_like(items, dtype=torch.bool) if seen is None else ~seen.among(items)
    soft = soft_labels(stored, allowed, 1.0, len(positions.vectors))
    truth = soft.new_full((len(positions), 1), of_truth)
    return Mixture(
        torch.cat([positions.targets.unsqueeze(1), items], dim=1),
        torch.cat([truth, of_teacher * soft], dim=1),
    )


def _ground_truth(step: Step, positions: torch.Tensor | None) -> torch.Tensor:
    """Return the loss of the ground truth, over these positions (bool) where they are given."""
    scored = step.scored
    if positions is not None:
        return ground_truth(
            replace(scored, logits=scored.logits[positions], targets=scored.targets[positions])
        )
    whole = scored.sampled is None and scored.warm == scored.logits.shape[1]
    if step.config.temperature == 1.0 and whole:  # the same value, from the softmax that exists
        return functional.nll_loss(step.views[0].log_student, scored.targets)
    return ground_truth(scored)


def _orders(label_sources: Sequence[Stored | AskedTeacher]) -> Orders | None:
    """Return the orders of the histories that stored labels were made for. None where labels do not
    depend on the order, where teachers are asked, or where the log has an order. Raises ConfigError
    for labels of different orders.
    """
    manifests = [
        source.store.manifest
        for source in label_sources
        if isinstance(source, Stored) and source.store.manifest.orders
    ]
    orders = {(manifest.seed, manifest.orders) for manifest in manifests}
    if len(orders) > 1:
        raise ConfigError(
            "this log has no order, and the labels of its teachers were made for different orders "
            "of the histories",
            fix="extract them with the same seed and the same labels.orders",
            parameter="labels",
        )
    return Orders(*orders.pop()) if orders else None


def _used(terms: Sequence[Term], config: DistillationConfig) -> list[Term]:
    return [term for term in terms if term.weight(config)]


def _check_sampled_softmax(terms: Sequence[Term], cold_items: bool) -> None:
    """Raise ConfigError for what a sampled softmax cannot do."""
    whole = [term.setting for term in terms if "catalogue" in term.needs]
    if whole:
        raise ConfigError(
            f"{' and '.join(whole)} needs the logits of the whole catalogue, which a sampled "
            "softmax does not compute",
            fix="set negatives = 0 in student_training, or "
            + " and ".join(f"{setting} = 0" for setting in whole),
            parameter="negatives",
        )
    if cold_items:
        raise ConfigError(
            "the labels cover items without training rows, which a sampled softmax does not draw",
            fix="set negatives = 0 in student_training, or cold_items = false in labels",
            parameter="negatives",
        )


def _add_modules(model: SequenceModel, terms: Sequence[Term], labels: Source, seed: int) -> None:
    """Add the weights of the terms to a student that will be trained."""
    for term in terms:
        if term.module is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model.add_module(term.name, term.module(model, labels))


def _windows_for(
    training: TrainingConfig, model: SequenceModel, teachers: Sequence[AskedTeacher]
) -> TrainingConfig:
    """Return the same training, with windows not longer than the `max_history` of any teacher."""
    if not teachers:
        return training
    longest = min(asked.teacher.max_history for asked in teachers)
    window = min(training.window or model.max_history, longest)
    return msgspec.structs.replace(training, window=window)


@contextmanager
def _on_device(device: torch.device, teachers: Sequence[AskedTeacher]) -> Iterator[None]:
    """Move teachers to a device, and afterwards back to the CPU."""
    try:
        for teacher in teachers:
            teacher.move_to(device)
        yield
    finally:
        for teacher in teachers:
            teacher.move_to(torch.device("cpu"))


def _views(
    scored: Scored,
    label_sources: Sequence[Stored | AskedTeacher],
    stored: Sequence[StoredLabels],
    config: DistillationConfig,
    temperature: float,
) -> list[View]:
    """Return one view for each teacher, from its labels of these positions.

    With a sampled softmax, the columns are the items of the labels only, and the log-sum-exp is
    estimated from the sample.
    """
    sampled, t = scored.sampled, temperature
    if sampled is None:
        # (positions, items), the costly step
        log_student = torch.log_softmax(scored.logits / t, dim=-1)
        return [
            View(
                scored.logits,
                log_student,
                labels,
                source.logits(scored)
                if isinstance(source, AskedTeacher) and config.all_logits
                else None,
            )
            for source, labels in zip(label_sources, stored, strict=True)
        ]
    total = torch.logsumexp(
        (scored.logits - sampled.correction) / t + sampled.correction, -1, keepdim=True
    )
    views = []
    for labels in stored:
        items = labels.items()  # (positions, K + M)
        student = sampled.logits_of(items)
        columns = torch.arange(items.shape[-1], device=items.device).expand_as(items)
        top = labels.top_items.shape[-1]
        local = replace(labels, top_items=columns[:, :top], sample_items=columns[:, top:])
        views.append(View(student, student / t - total, local))
    return views
