"""The teacher of a run: trained, read, or given from Python, with or without members in closed
form.
"""

from __future__ import annotations

from dataclasses import replace

from distilrec.data.dataset import Dataset
from distilrec.runs.artifact import measured_stage
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
from distilrec.training.trained import Earlier
from distilrec.training.validation import validation_ndcg


def teacher_config(run: Run, dataset: Dataset) -> TeacherConfig:
    """Return the teacher that is trained for this data: the one of the configuration, and the
    members in closed form that join it.
    """
    items = dataset.info.warm_items
    return with_closed_form(run.config.teacher, run.config.closed_form, items)


def train_teacher(run: Run, dataset: Dataset, earlier: Earlier | None = None) -> Teacher:
    """Train the teacher on the ground truth, or read it where it comes from outside; return it.

    earlier: the teacher of the run before, with which a refresh begins.
    """
    folder, config = run.places.teacher, teacher_config(run, dataset)
    with measured_stage(run, "teacher", teacher_records(config, folder)) as stage:
        teacher = make_teacher(
            config,
            dataset,
            run.config.teacher_training,
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
