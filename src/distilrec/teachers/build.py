"""Teachers by their configuration: `TEACHERS` says how each kind is made, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError, TrainingError
from distilrec.files import RecordKind, key_of
from distilrec.networks.dnn import DnnConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.settings import Count, Seed, Settings
from distilrec.teachers.ease import (
    SAVED_EASE,
    EaseConfig,
    EaseTeacher,
    carried_ease,
    fit_ease,
    load_ease,
    ridge_of,
    save_ease,
)
from distilrec.teachers.ensemble import (
    EnsembleTeacher,
    Pooling,
    pooled_ensemble,
    single_teachers,
)
from distilrec.teachers.external import (
    FunctionConfig,
    FunctionTeacher,
    ScoresConfig,
    UserScores,
    import_function,
    load_user_scores,
    read_scores,
    save_user_scores,
)
from distilrec.teachers.linear import (
    SAVED_LINEAR,
    LinearConfig,
    LinearTeacher,
    carried_linear,
    earlier_decay_of,
    fit_linear,
    load_linear,
    save_linear,
)
from distilrec.teachers.teacher import ModelTeacher, Teacher
from distilrec.training.checkpoints import drop_checkpoint
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import SAVED, Earlier, load_model, save_model, train_model

NetworkConfig = TransformerConfig | DnnConfig | RecurrentConfig
ClosedFormConfig = LinearConfig | EaseConfig
OwnConfig = ScoresConfig | FunctionConfig
SingleConfig = NetworkConfig | ClosedFormConfig | OwnConfig
_BETWEEN_SEEDS = 1_000


class MemberConfig(Settings, frozen=True):
    """One teacher of an ensemble."""

    model: SingleConfig
    """Any other kind of teacher."""
    training: TrainingConfig | None = None
    """How it is trained; `teacher_training` by default."""
    seed: Seed = 0
    """Added to the seed of the run."""
    seeds: Count = 1
    """Networks that are trained so, each with a seed of its own, as many members."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds > 1 and not isinstance(self.model, NetworkConfig):
            raise ConfigError(
                f"a member of the kind {self.model.__struct_config__.tag} has {self.seeds} seeds, "
                "but nothing random that makes them differ",
                fix="leave `seeds` out, or use it for a network",
                parameter="teacher.members.seeds",
            )


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


def members_of(config: EnsembleConfig) -> tuple[MemberConfig, ...]:
    """Return the members of an ensemble, each with one seed."""
    return tuple(
        msgspec.structs.replace(member, seed=member.seed + number * _BETWEEN_SEEDS, seeds=1)
        for member in config.members
        for number in range(member.seeds)
    )


_ENSEMBLE = RecordKind(
    "ensemble.json",
    Pooling,
    (),
    2,
    TrainingError,
    what="ensemble",
    fix="train it first (distilrec train)",
    again="train the teacher again (distilrec train)",
)


TeacherConfig = SingleConfig | EnsembleConfig
_CLOSED_FORM: tuple[ClosedFormConfig, ...] = (EaseConfig(), LinearConfig())
LARGEST_CATALOGUE = 100_000


def with_closed_form(config: TeacherConfig, closed_form: bool | None, items: int) -> TeacherConfig:
    """Return a teacher that EASE and the linear transition model have joined.

    closed_form: whether they do; None is: where all of it is trained here, and the catalogue has at
    most `LARGEST_CATALOGUE` items with training rows. One that is in closed form itself is an
    ensemble in any case, so that its scores get a temperature.
    """
    members = config.members if isinstance(config, EnsembleConfig) else (MemberConfig(config),)
    kinds = {type(member.model) for member in members}
    if closed_form is None:
        closed_form = items <= LARGEST_CATALOGUE and not kinds & set(get_args(OwnConfig))
    joining = _CLOSED_FORM if closed_form else ()
    members += tuple(MemberConfig(model) for model in joining if type(model) not in kinds)
    alone = len(members) == 1 and not isinstance(config, EnsembleConfig | ClosedFormConfig)
    return config if alone else EnsembleConfig(members)


@dataclass(frozen=True)
class Making:
    """What a teacher is made of and where it is saved, besides its own configuration.

    name: what progress calls it. made_from: a key of all choices, to be saved with the teacher.
    earlier: with which the training of networks begins.
    """

    dataset: Dataset
    training: TrainingConfig
    folder: Path
    seed: int
    options: RunOptions
    name: str
    made_from: str
    earlier: Earlier | None = None


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
    earlier: Earlier | None = None,
) -> Teacher:
    """Train or read a teacher and save it into a folder; what is there already from the same
    choices is used again.

    A file or a function is read each time: what it says may have changed.
    earlier: the same teacher on data that have grown since; its networks are trained further.
    """
    options = options or RunOptions()
    before = [] if earlier is None else earlier.marks()
    made_from = key_of(dataset.fingerprint(), config, training, seed, *before)
    kind = _kind_of(config)
    if kind.saved is not None and kind.saved.is_made(folder, made_from):
        if options.checkpoint is not None:
            drop_checkpoint(options.checkpoint)
        return kind.load(config, folder, dataset)
    making = Making(dataset, training, folder, seed, options, name, made_from, earlier)
    return kind.make(config, making)


def teacher_records(
    config: TeacherConfig, folder: Path
) -> tuple[tuple[RecordKind[Any], Path], ...]:
    """Return the records of a teacher, with their folders, that are not made again from the same
    choices: of an ensemble those of its members.
    """
    if isinstance(config, EnsembleConfig):
        return tuple(
            record
            for number, member in enumerate(members_of(config))
            for record in teacher_records(member.model, folder / f"member-{number}")
        )
    saved = _kind_of(config).saved
    return () if saved is None else ((saved, folder),)


def load_teacher(config: TeacherConfig, folder: Path, dataset: Dataset) -> Teacher:
    """Return a teacher that `make_teacher` saved. Raises FileMissingError, TrainingError and
    TeacherError.
    """
    return _kind_of(config).load(config, folder, dataset)


def join_closed_form(
    teacher: Teacher, dataset: Dataset, folder: Path, *, seed: int
) -> EnsembleTeacher:
    """Return the ensemble of a teacher with EASE and the linear transition model, which are saved
    into a folder.
    """
    members = [teacher] + [
        make_teacher(
            model, dataset, TrainingConfig(), folder / str(model.__struct_config__.tag), seed=seed
        )
        for model in _CLOSED_FORM
    ]
    return join_teachers(members, dataset, folder, seed=seed)


def kind_of(teacher: Teacher) -> str:
    """Return the kind of a teacher as configurations call it; "own" for one of another class."""
    match teacher:
        case ModelTeacher():
            return str(teacher.trained.record.config.__struct_config__.tag)
        case LinearTeacher() | EaseTeacher():
            return str(teacher.config.__struct_config__.tag)
        case EnsembleTeacher():
            return "ensemble"
        case UserScores():
            return "scores"
        case FunctionTeacher():
            return "function"
        case _:
            return "own"


def known_baselines(teacher: Teacher) -> dict[str, Teacher]:
    """Return the baselines of a report that a teacher has among its members, by name: those that
    are fitted to its data.
    """
    for member in single_teachers(teacher):
        if isinstance(member, EaseTeacher) and member.config == EaseConfig() and member.fitted:
            return {"EASE": member}
    return {}


def item_vectors(teacher: Teacher) -> NDArray[np.float32] | None:
    """Return the vectors of the items that a network has, (items, dim), of an ensemble those of its
    first network; None where there is none.
    """
    networks = [member for member in single_teachers(teacher) if isinstance(member, ModelTeacher)]
    return networks[0].item_vectors() if networks else None


def _kind_of(config: TeacherConfig) -> TeacherKind:
    return next(kind for kind in TEACHERS if isinstance(config, kind.configs))


def _train_network(config: NetworkConfig, making: Making) -> Teacher:
    options, earlier = making.options, making.earlier
    if earlier is not None and not earlier.asked:
        model = earlier.carried(making.dataset)
    else:
        start = None if earlier is None else earlier.start(making.dataset)
        train = partial(
            train_model, config, making.dataset, making.training, seed=making.seed, start=start
        )
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


def _load_network(config: NetworkConfig, folder: Path, dataset: Dataset) -> Teacher:
    model = load_model(folder, dataset)
    _need_same(model.record.config, config, folder)
    return ModelTeacher(model)


def _kept(making: Making) -> Earlier | None:
    """Return the earlier teacher where this one stays as that is, None where it is fitted."""
    earlier = making.earlier
    return None if earlier is None or (earlier.refit and earlier.asked) else earlier


def _fit_linear(config: LinearConfig, making: Making) -> Teacher:
    if (kept := _kept(making)) is None:
        decay = None if making.earlier is None else earlier_decay_of(making.earlier.folder)
        linear = fit_linear(config, making.dataset, making.seed, decay)
    else:
        linear = carried_linear(kept, making.dataset)
    save_linear(linear, making.folder, making.made_from)
    return linear


def _fit_ease(config: EaseConfig, making: Making) -> Teacher:
    if (kept := _kept(making)) is None:
        ridge = None if making.earlier is None else ridge_of(making.earlier.folder)
        ease = fit_ease(config, making.dataset, ridge)
    else:
        ease = carried_ease(kept, making.dataset)
    save_ease(ease, making.folder, making.made_from)
    return ease


def _load_closed_form(
    load: Callable[[Path, Dataset], LinearTeacher | EaseTeacher],
    config: ClosedFormConfig,
    folder: Path,
    dataset: Dataset,
) -> Teacher:
    teacher = load(folder, dataset)
    _need_same(teacher.config, config, folder)
    return teacher


def _read_scores(config: ScoresConfig, making: Making) -> Teacher:
    scores = read_scores(config, making.dataset)
    save_user_scores(scores, making.folder)
    return scores


def _make_ensemble(config: EnsembleConfig, making: Making) -> Teacher:
    checkpoint, members = making.options.checkpoint, []
    configs, earlier = members_of(config), making.earlier
    weights = () if earlier is None else _ENSEMBLE.read(earlier.folder).about.weights
    for number, member in enumerate(configs):
        own_checkpoint = None if checkpoint is None else checkpoint / f"member-{number}"
        members.append(
            make_teacher(
                member.model,
                making.dataset,
                member.training or making.training,
                making.folder / f"member-{number}",
                seed=making.seed + member.seed,
                options=replace(making.options, checkpoint=own_checkpoint),
                name=f"{making.name} {number + 1}/{len(configs)}",
                earlier=earlier and earlier.member(number, weights[number]),
            )
        )
    if checkpoint is not None:
        drop_checkpoint(checkpoint)
    if earlier is None:
        return join_teachers(members, making.dataset, making.folder, seed=making.seed)
    pooling = Pooling(weights, tuple(member.identity for member in members))
    _ENSEMBLE.write(making.folder, pooling, made_from=making.made_from)
    return EnsembleTeacher(members, pooling)


def join_teachers(
    members: Sequence[Teacher], dataset: Dataset, folder: Path, *, seed: int
) -> EnsembleTeacher:
    """Return the ensemble of some teachers, its weights chosen on validation and saved into a
    folder; weights of the same members that are there already are used again.
    """
    made_from = key_of(dataset.fingerprint(), [member.identity for member in members], seed)
    if _ENSEMBLE.is_made(folder, made_from):
        return EnsembleTeacher(members, _ENSEMBLE.read(folder).about)
    teacher = pooled_ensemble(members, dataset, seed)
    _ENSEMBLE.write(folder, teacher.pooling, made_from=made_from)
    return teacher


def _load_ensemble(config: EnsembleConfig, folder: Path, dataset: Dataset) -> Teacher:
    saved = _ENSEMBLE.read(folder).about
    members = [
        load_teacher(member.model, folder / f"member-{number}", dataset)
        for number, member in enumerate(members_of(config))
    ]
    if saved.members != tuple(member.identity for member in members):
        raise _ENSEMBLE.damaged(folder / _ENSEMBLE.file, "holds the weights of other members")
    return EnsembleTeacher(members, saved)


TEACHERS = (
    TeacherKind(
        (TransformerConfig, DnnConfig, RecurrentConfig), _train_network, _load_network, SAVED
    ),
    TeacherKind(
        (LinearConfig,), _fit_linear, partial(_load_closed_form, load_linear), SAVED_LINEAR
    ),
    TeacherKind((EaseConfig,), _fit_ease, partial(_load_closed_form, load_ease), SAVED_EASE),
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
