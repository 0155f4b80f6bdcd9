"""What there is to distil in a run, said as soon as it is known."""

from __future__ import annotations

from collections.abc import Mapping

from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.files import RecordKind, key_of
from distilrec.measure.ranking import Scorer
from distilrec.report.baselines import fitted_baselines
from distilrec.report.comparison import ALONE
from distilrec.report.headroom import Headroom, measure_headroom
from distilrec.runs.folder import Run
from distilrec.runs.teachers import open_teacher
from distilrec.teachers.build import known_baselines
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training.trained import SAVED, load_model

_ALONE = "the " + ALONE
_HEADROOM = RecordKind(
    "headroom.json",
    Headroom,
    (),
    1,
    TrainingError,
    what="comparison on the validation part",
    fix="run `distilrec distill` first",
    again="delete it and run `distilrec distill` again",
)


def headroom_of(
    run: Run,
    dataset: Dataset,
    baselines: Mapping[str, Scorer] | None = None,
    known: Headroom | None = None,
) -> Headroom:
    """Return how far the teacher is above the baselines, and above the student without distillation
    where there is one, on validation; measured once.

    baselines: by name, fitted here by default. known: what was measured of these and this teacher
    before the student without distillation was there, which is not measured again.
    """
    teacher = open_teacher(run, dataset)
    alone = None
    if (run.places.baseline / SAVED.file).is_file():
        alone = load_model(run.places.baseline, dataset)
    identity = None if alone is None else alone.record.identity
    made_from = key_of(dataset.fingerprint(), teacher.identity, identity)
    if _HEADROOM.is_made(run.folder, made_from):
        return _HEADROOM.read(run.folder).about
    if known is not None:
        baselines = {}
    elif baselines is None:
        baselines = fitted_baselines(dataset, known_baselines(teacher))
    rivals = dict(baselines)
    if alone is not None:
        rivals[_ALONE] = ModelTeacher(alone)
    headroom = measure_headroom(dataset, teacher, rivals)
    if known is not None:
        before = [rival for rival in known.rivals if rival.name != _ALONE]
        headroom = Headroom(headroom.teacher, (*before, *headroom.rivals))
    _HEADROOM.write(run.folder, headroom, made_from=made_from)
    return headroom


def warn_of_little_headroom(
    run: Run,
    dataset: Dataset,
    baselines: Mapping[str, Scorer] | None = None,
    said: Headroom | None = None,
) -> Headroom:
    """Say where a baseline, or the student without distillation where there is one, is not clearly
    below the teacher; return what was measured.

    baselines: by name, fitted here by default. said: what was measured and said before the student
    without distillation was there, which is not repeated.
    """
    headroom = headroom_of(run, dataset, baselines, said)
    if run.config.privacy is None:  # a private student gets no labels
        for line in headroom.lines(said):
            run.progress.say(line)
    return headroom
