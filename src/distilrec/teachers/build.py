"""Teachers by their configuration: `TEACHERS` says how each kind is made, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, TrainingError
from distilrec.files import RecordKind, key_of
from distilrec.networks.dnn import DnnConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.settings import Seed, Settings
from distilrec.teachers.ensemble import EnsembleTeacher, calibrated_ensemble
from distilrec.teachers.external import (
    FunctionConfig,
    ScoresConfig,
    import_function,
    load_user_scores,
    read_scores,
    save_user_scores,
)
from distilrec.teachers.linear import (
    SAVED_LINEAR,
    LinearConfig,
    fit_linear,
    load_linear,
    save_linear,
)
from distilrec.teachers.teacher import ModelTeacher, Teacher
from distilrec.training.checkpoints import drop_checkpoint
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import SAVED, load_model, save_model, train_model

SingleConfig = (
    TransformerConfig | DnnConfig | RecurrentConfig | LinearConfig | ScoresConfig | FunctionConfig
)


class MemberConfig(Settings, frozen=True):
    """One teacher of an ensemble."""

    model: SingleConfig
    """Any other kind of teacher."""
    training: TrainingConfig | None = None
    """How it is trained; `teacher_training` by default."""
    seed: Seed = 0
    """Added to the seed of the run."""


class EnsembleConfig(Settings, frozen=True, tag="ensemble", tag_field="kind"):
    """A weighted average of other teachers."""

    members: tuple[MemberConfig, ...]
    """The teachers, as `[[teacher.members]]` sections."""

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError(
                "the ensemble has no members",
                fix="add [[teacher.members]] sections",
                parameter="members",
            )


class _Weights(msgspec.Struct, frozen=True):
    """The weights of an ensemble. members: the identities of the teachers for which they were
    chosen.
    """

    weights: tuple[float, ...]
    members: tuple[str, ...]


_ENSEMBLE = RecordKind(
    "ensemble.json",
    _Weights,
    (),
    1,
    TrainingError,
    what="ensemble",
    fix="train it first (distilrec train)",
    again="train the teacher again (distilrec train)",
)


TeacherConfig = SingleConfig | EnsembleConfig


@dataclass(frozen=True)
class Making:
    """What a teacher is made of and where it is saved, besides its own configuration.

    name: what progress calls it. made_from: a key of all choices, to be saved with the teacher.
    """

    dataset: Dataset
    training: TrainingConfig
    folder: Path
    seed: int
    options: RunOptions
    name: str
    made_from: str


@dataclass(frozen=True)
class TeacherKind:
    """One kind of teacher that a configuration can ask for; `TEACHERS` has a row for each.

    configs: the classes of its settings. make: trains or reads it and saves it. load: returns what
    was saved. saved: the record with the key of the choices, where a teacher from the same choices
    is used again; None for one that is read each time, because its file or function may have
    changed.
    """

    configs: tuple[type[Settings], ...]
    make: Callable[[Any, Making], Teacher]
    load: Callable[[Any, Path, Dataset], Teacher]
    saved: RecordKind[Any] | None = None


def make_teacher(
    config: TeacherConfig,
    dataset: Dataset,
    training: TrainingConfig,
    folder: Path,
    *,
    seed: int,
    options: RunOptions | None = None,
    name: str = "teacher",
) -> Teacher:
    """Train or read a teacher and save it into a folder; what is there already from the same
    choices is used again.

    A file or a function is read each time: what it says may have changed.
    """
    options = options or RunOptions()
    made_from = key_of(dataset.fingerprint(), config, training, seed)
    kind = _kind_of(config)
    if kind.saved is not None and kind.saved.is_made(folder, made_from):
        if options.checkpoint is not None:
            drop_checkpoint(options.checkpoint)
        return kind.load(config, folder, dataset)
    return kind.make(config, Making(dataset, training, folder, seed, options, name, made_from))


def teacher_records(
    config: TeacherConfig, folder: Path
) -> tuple[tuple[RecordKind[Any], Path], ...]:
    """Return the records of a teacher, with their folders, that are not made again from the same
    choices: of an ensemble those of its members.
    """
    if isinstance(config, EnsembleConfig):
        return tuple(
            record
            for number, member in enumerate(config.members)
            for record in teacher_records(member.model, folder / f"member-{number}")
        )
    saved = _kind_of(config).saved
    return () if saved is None else ((saved, folder),)


def load_teacher(config: TeacherConfig, folder: Path, dataset: Dataset) -> Teacher:
    """Return a teacher that `make_teacher` saved. Raises FileMissingError, TrainingError and
    TeacherError.
    """
    return _kind_of(config).load(config, folder, dataset)


def single_teachers(teacher: Teacher) -> list[Teacher]:
    """Return the members of an ensemble, or the teacher itself in a list."""
    return list(teacher.members) if isinstance(teacher, EnsembleTeacher) else [teacher]


def _kind_of(config: TeacherConfig) -> TeacherKind:
    return next(kind for kind in TEACHERS if isinstance(config, kind.configs))


def _train_network(
    config: TransformerConfig | DnnConfig | RecurrentConfig, making: Making
) -> Teacher:
    options = making.options
    train = partial(train_model, config, making.dataset, making.training, seed=making.seed)
    model = options.train_together(
        train,
        lambda epoch, total: options.progress.advance(
            making.name, epoch.epoch, total, epoch.note()
        ),
    )
    save_model(model, making.folder, making.made_from)
    if options.checkpoint is not None:
        drop_checkpoint(options.checkpoint)
    return ModelTeacher(model)


def _load_network(
    config: TransformerConfig | DnnConfig | RecurrentConfig, folder: Path, dataset: Dataset
) -> Teacher:
    model = load_model(folder, dataset)
    _need_same(model.record.config, config, folder)
    return ModelTeacher(model)


def _fit_linear(config: LinearConfig, making: Making) -> Teacher:
    linear = fit_linear(config, making.dataset, making.seed)
    save_linear(linear, making.folder, making.made_from)
    return linear


def _load_linear(config: LinearConfig, folder: Path, dataset: Dataset) -> Teacher:
    linear = load_linear(folder, dataset)
    _need_same(linear.config, config, folder)
    return linear


def _read_scores(config: ScoresConfig, making: Making) -> Teacher:
    scores = read_scores(config, making.dataset)
    save_user_scores(scores, making.folder)
    return scores


def _make_ensemble(config: EnsembleConfig, making: Making) -> Teacher:
    checkpoint, members = making.options.checkpoint, []
    for number, member in enumerate(config.members):
        own_checkpoint = None if checkpoint is None else checkpoint / f"member-{number}"
        members.append(
            make_teacher(
                member.model,
                making.dataset,
                member.training or making.training,
                making.folder / f"member-{number}",
                seed=making.seed + member.seed,
                options=replace(making.options, checkpoint=own_checkpoint),
                name=f"{making.name} {number + 1}/{len(config.members)}",
            )
        )
    teacher = calibrated_ensemble(members, making.dataset, making.seed)
    _ENSEMBLE.write(
        making.folder, _Weights(teacher.weights, tuple(member.identity for member in members))
    )
    return teacher


def _load_ensemble(config: EnsembleConfig, folder: Path, dataset: Dataset) -> Teacher:
    saved = _ENSEMBLE.read(folder).about
    members = [
        load_teacher(member.model, folder / f"member-{number}", dataset)
        for number, member in enumerate(config.members)
    ]
    if saved.members != tuple(member.identity for member in members):
        raise _ENSEMBLE.damaged(folder / _ENSEMBLE.file, "holds the weights of other members")
    return EnsembleTeacher(members, saved.weights)


TEACHERS = (
    TeacherKind(
        (TransformerConfig, DnnConfig, RecurrentConfig), _train_network, _load_network, SAVED
    ),
    TeacherKind((LinearConfig,), _fit_linear, _load_linear, SAVED_LINEAR),
    TeacherKind(
        (ScoresConfig,), _read_scores, lambda config, folder, data: load_user_scores(folder, data)
    ),
    TeacherKind(
        (FunctionConfig,),
        lambda config, making: import_function(config, making.dataset),
        lambda config, folder, dataset: import_function(config, dataset),
    ),
    TeacherKind((EnsembleConfig,), _make_ensemble, _load_ensemble),
)


def _need_same(trained: object, wanted: object, folder: Path) -> None:
    if trained != wanted:
        raise TrainingError(
            f"the teacher in {folder} was trained with other settings than those of the run",
            fix="train it again (distilrec train)",
            file=str(folder),
        )
