"""The teacher of a run: trained, read, or given from Python, with or without members in closed
form.
"""

from __future__ import annotations

from dataclasses import replace

from distilrec.data.dataset import Dataset, DatasetInfo
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.runs.artifact import measured_stage
from distilrec.runs.config import RunConfig
from distilrec.runs.folder import Run
from distilrec.runs.places import TEACHER
from distilrec.teachers.build import (
    TeacherConfig,
    join_closed_form,
    kind_of,
    load_teacher,
    make_teacher,
    teacher_records,
    with_closed_form,
)
from distilrec.teachers.ensemble import EnsembleTeacher
from distilrec.teachers.external import UserScores
from distilrec.teachers.teacher import Teacher
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import Earlier
from distilrec.training.validation import validation_ndcg

# The teacher where the log has repeats or no order; it was compared in docs/experiments.md
_RECURRENT = RecurrentConfig(dim=64, scales=4, dropout=0.3)
_RECURRENT_TRAINING = TrainingConfig(learning_rate=4e-3)


def chosen_teacher(config: RunConfig, info: DatasetInfo) -> tuple[TeacherConfig, TrainingConfig]:
    """Return the teacher of a configuration without the members in closed form that join it, and
    how its networks are trained; what the configuration leaves open depends on the log.
    """
    given, training = config.teacher, config.teacher_training
    if given is not None or (info.order != "none" and not info.repeats):
        return given or TransformerConfig(), training or TrainingConfig()
    return _RECURRENT, training or _RECURRENT_TRAINING


def teacher_config(run: Run, dataset: Dataset) -> TeacherConfig:
    """Return the teacher that is trained for this data: the one of the configuration, and the
    members in closed form that join it.
    """
    teacher, _ = chosen_teacher(run.config, dataset.info)
    return with_closed_form(teacher, run.config.closed_form, dataset.info.warm_items)


def train_teacher(run: Run, dataset: Dataset, earlier: Earlier | None = None) -> Teacher:
    """Train the teacher on the ground truth, or read it where it comes from outside; return it.

    earlier: the teacher of the run before, with which a refresh begins.
    """
    folder, config = run.places.teacher, teacher_config(run, dataset)
    _, training = chosen_teacher(run.config, dataset.info)
    with measured_stage(run, "teacher", teacher_records(config, folder)) as stage:
        teacher = make_teacher(
            config,
            dataset,
            training,
            folder,
            seed=run.teacher_seed,
            options=replace(run.options, checkpoint=run.places.checkpoint(TEACHER)),
            earlier=earlier,
        )
    if isinstance(teacher, UserScores):
        for note in teacher.notes:
            run.progress.say(note)
    _say_members(run, teacher)
    parameters = (
        "" if teacher.cost.parameters is None else f", {teacher.cost.parameters:,} parameters"
    )
    run.progress.say(
        f"teacher: {kind_of(teacher)}{parameters}, "
        f"validation NDCG@10 {_validation_ndcg(teacher, dataset):.4f}"
        + ("" if teacher.cost.seconds is None else f", trained in {teacher.cost.seconds:.0f} s")
        + (", already trained" if stage.reused else "")
    )
    return teacher


def _validation_ndcg(teacher: Teacher, dataset: Dataset) -> float:
    known = teacher.pooling.together if isinstance(teacher, EnsembleTeacher) else None
    return validation_ndcg(teacher, dataset) if known is None else known


def _say_members(run: Run, teacher: Teacher) -> None:
    """Say of each member of an ensemble how good it is alone, and its weight."""
    if not isinstance(teacher, EnsembleTeacher):
        return
    pooling = teacher.pooling
    alone = [f"validation NDCG@10 {ndcg:.4f} alone, " for ndcg in pooling.alone]
    for member, weight, ndcg in zip(
        teacher.members, pooling.weights, alone or [""] * len(pooling.weights), strict=True
    ):
        run.progress.say(
            f"teacher: member {kind_of(member)}, {ndcg}"
            + (f"has the weight {weight:.3f}" if weight else "is not asked: it helps no other")
        )


def open_teacher(run: Run, dataset: Dataset) -> Teacher:
    """Return the teacher of a run: the one given from Python, or the trained one in its folder."""
    if run.own_teacher is not None:
        return run.own_teacher
    return load_teacher(teacher_config(run, dataset), run.places.teacher, dataset)


def join_own_teacher(run: Run, dataset: Dataset, teacher: Teacher) -> Teacher:
    """Return a teacher that was given from Python, alone, or with members in closed form where the
    configuration asks for them.
    """
    if not run.config.closed_form:
        return teacher
    joined = join_closed_form(teacher, dataset, run.places.teacher, seed=run.teacher_seed)
    _say_members(run, joined)
    return joined
