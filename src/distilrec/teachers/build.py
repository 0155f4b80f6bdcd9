"""Teachers by their configuration: train or read, save, load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, FileMissingError, TrainingError
from distilrec.models import load_model, save_model, train_model
from distilrec.settings import Settings
from distilrec.students.recurrent import RecurrentConfig
from distilrec.teachers.dnn import DnnConfig
from distilrec.teachers.ensemble import EnsembleTeacher, calibrated_ensemble
from distilrec.teachers.external import (
    FunctionConfig,
    ScoresConfig,
    import_function,
    load_user_scores,
    read_scores,
    save_user_scores,
)
from distilrec.teachers.linear import LinearConfig, fit_linear, load_linear, save_linear
from distilrec.teachers.teacher import ModelTeacher, Teacher
from distilrec.teachers.transformer import TransformerConfig
from distilrec.training.trainer import Epoch, TrainingConfig
from distilrec.workers import InProcess, Workers

SingleConfig = TransformerConfig | DnnConfig | RecurrentConfig | LinearConfig | ScoresConfig | FunctionConfig


class MemberConfig(Settings, frozen=True):
    """One teacher of an ensemble; training: None takes `teacher_training`; seed: added to that of the run."""

    model: SingleConfig
    training: TrainingConfig | None = None
    seed: int = 0


class EnsembleConfig(Settings, frozen=True, tag="ensemble", tag_field="kind"):
    members: tuple[MemberConfig, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError(
                "the ensemble has no members", fix="add [[teacher.members]] sections", parameter="members"
            )


TeacherConfig = SingleConfig | EnsembleConfig
OnEpoch = Callable[[str, Epoch, int], None]


class _Weights(msgspec.Struct, frozen=True):
    weights: tuple[float, ...]


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
    """Trains or reads a teacher and saves it into a folder; what is there already from the same choices is used again.

    A file or a function is read anew each time: what it says may have changed.
    """
    stamp, stamp_file = (
        msgspec.json.encode((dataset.fingerprint(), config, training, seed)),
        folder / "trained-with.json",
    )
    trainable = isinstance(config, TransformerConfig | DnnConfig | RecurrentConfig | LinearConfig)
    if trainable and stamp_file.is_file() and stamp_file.read_bytes() == stamp:
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
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "ensemble.json").write_bytes(msgspec.json.encode(_Weights(teacher.weights)))
            return teacher
        case LinearConfig():
            linear = fit_linear(config, dataset, seed)
            save_linear(linear, folder)
            stamp_file.write_bytes(stamp)
            return linear
        case ScoresConfig():
            scores = read_scores(config, dataset)
            save_user_scores(scores, folder)
            return scores
        case FunctionConfig():
            return import_function(config, dataset)
        case _:
            train = partial(train_model, config, dataset, training, seed=seed, checkpoint=checkpoint)
            trained = (workers or InProcess()).together(
                lambda report: train(on_epoch=report), lambda epoch, total: on_epoch(name, epoch, total)
            )
            save_model(trained, folder)
            stamp_file.write_bytes(stamp)
            if checkpoint is not None:
                shutil.rmtree(checkpoint, ignore_errors=True)
            return ModelTeacher(trained)


def load_teacher(config: TeacherConfig, folder: Path, dataset: Dataset) -> Teacher:
    """A teacher that `make_teacher` saved. Raises FileMissingError, TrainingError and TeacherError."""
    match config:
        case EnsembleConfig():
            path = folder / "ensemble.json"
            if not path.is_file():
                raise FileMissingError(
                    f"there is no ensemble in {folder}", fix="train it first (distilrec train)", file=str(path)
                )
            try:
                weights = msgspec.json.decode(path.read_bytes(), type=_Weights).weights
            except msgspec.MsgspecError as problem:
                raise TrainingError(
                    f"{path} cannot be read: {problem}", fix=f"delete {folder} and train the teacher again"
                ) from None
            members = [
                load_teacher(member.model, folder / f"member-{number}", dataset)
                for number, member in enumerate(config.members)
            ]
            return EnsembleTeacher(members, weights)
        case LinearConfig():
            return load_linear(folder, dataset)
        case ScoresConfig():
            return load_user_scores(folder, dataset)
        case FunctionConfig():
            return import_function(config, dataset)
        case _:
            return ModelTeacher(load_model(folder, dataset))


def single_teachers(teacher: Teacher) -> list[Teacher]:
    """The members of an ensemble, or the teacher itself."""
    return list(teacher.members) if isinstance(teacher, EnsembleTeacher) else [teacher]
