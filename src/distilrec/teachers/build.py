"""Teachers by their configuration: train or read, save, load."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from distilrec.training.options import Epoch, TrainingConfig
from distilrec.training.trained import SAVED, load_model, save_model, train_model
from distilrec.workers import InProcess, Workers

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


TeacherConfig = SingleConfig | EnsembleConfig
OnEpoch = Callable[[str, Epoch, int], None]


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


def make_teacher(
    config: TeacherConfig,
    dataset: Dataset,
    training: TrainingConfig,
    folder: Path,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch = lambda name, epoch, total: None,
    name: str = "teacher",
    workers: Workers | None = None,
) -> Teacher:
    """Trains or reads a teacher and saves it into a folder; what is there already from the same
    choices is used again.

    A file or a function is read anew each time: what it says may have changed.
    """
    made_from = key_of(dataset.fingerprint(), config, training, seed)
    trained = (
        isinstance(config, TransformerConfig | DnnConfig | RecurrentConfig)
        and SAVED.made_from(folder) == made_from
    )
    fitted = isinstance(config, LinearConfig) and SAVED_LINEAR.made_from(folder) == made_from
    if trained or fitted:
        if checkpoint is not None:
            drop_checkpoint(checkpoint)
        return load_teacher(config, folder, dataset)
    match config:
        case EnsembleConfig():
            members = []
            for number, member in enumerate(config.members):
                place = folder / f"member-{number}"
                members.append(
                    make_teacher(
                        member.model,
                        dataset,
                        member.training or training,
                        place,
                        seed=seed + member.seed,
                        checkpoint=None if checkpoint is None else checkpoint / f"member-{number}",
                        on_epoch=on_epoch,
                        name=f"{name} {number + 1}/{len(config.members)}",
                        workers=workers,
                    )
                )
            teacher = calibrated_ensemble(members, dataset, seed)
            _ENSEMBLE.write(
                folder, _Weights(teacher.weights, tuple(member.identity for member in members))
            )
            return teacher
        case LinearConfig():
            linear = fit_linear(config, dataset, seed)
            save_linear(linear, folder, made_from)
            return linear
        case ScoresConfig():
            scores = read_scores(config, dataset)
            save_user_scores(scores, folder)
            return scores
        case FunctionConfig():
            return import_function(config, dataset)
        case _:
            train = partial(
                train_model, config, dataset, training, seed=seed, checkpoint=checkpoint
            )
            model = (workers or InProcess()).together(
                lambda report: train(on_epoch=report),
                lambda epoch, total: on_epoch(name, epoch, total),
            )
            save_model(model, folder, made_from)
            if checkpoint is not None:
                drop_checkpoint(checkpoint)
            return ModelTeacher(model)


def load_teacher(config: TeacherConfig, folder: Path, dataset: Dataset) -> Teacher:
    """A teacher that `make_teacher` saved. Raises FileMissingError, TrainingError and
    TeacherError.
    """
    match config:
        case EnsembleConfig():
            saved = _ENSEMBLE.read(folder).about
            members = [
                load_teacher(member.model, folder / f"member-{number}", dataset)
                for number, member in enumerate(config.members)
            ]
            if saved.members != tuple(member.identity for member in members):
                raise _ENSEMBLE.damaged(
                    folder / _ENSEMBLE.file, "holds the weights of other members"
                )
            return EnsembleTeacher(members, saved.weights)
        case LinearConfig():
            linear = load_linear(folder, dataset)
            _need_same(linear.config, config, folder)
            return linear
        case ScoresConfig():
            return load_user_scores(folder, dataset)
        case FunctionConfig():
            return import_function(config, dataset)
        case _:
            model = load_model(folder, dataset)
            _need_same(model.record.config, config, folder)
            return ModelTeacher(model)


def _need_same(trained: object, wanted: object, folder: Path) -> None:
    if trained != wanted:
        raise TrainingError(
            f"the teacher in {folder} was trained with other settings than those of the run",
            fix="train it again (distilrec train)",
            file=str(folder),
        )


def single_teachers(teacher: Teacher) -> list[Teacher]:
    """The members of an ensemble, or the teacher itself."""
    return list(teacher.members) if isinstance(teacher, EnsembleTeacher) else [teacher]
