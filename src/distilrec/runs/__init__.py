"""A run folder and what is done in it, stage by stage.

Where everything is: `distilrec.runs.places`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names
from distilrec.progress import Lines, Silent

if TYPE_CHECKING:
    from distilrec.runs.artifact import trained_once
    from distilrec.runs.baseline import train_baseline
    from distilrec.runs.candidates import model_bytes, student_candidate, teacher_candidates
    from distilrec.runs.config import DataConfig, RunConfig, read_config
    from distilrec.runs.folder import Run, open_data, open_run, read_costs
    from distilrec.runs.headroom import warn_of_little_headroom
    from distilrec.runs.refreshing import refresh
    from distilrec.runs.served import let_answer
    from distilrec.runs.service_log import ServiceLog
    from distilrec.runs.sizes import sweep
    from distilrec.runs.stages import (
        distill_student,
        evaluate,
        export,
        forget_user,
        prepare,
        run_all,
        teacher_labels,
        train_students,
    )
    from distilrec.runs.teachers import open_teacher, train_teacher
    from distilrec.runs.trial import Trial, try_out
    from distilrec.runs.upkeep import check_drift, gate, tune_students

_MODULES = {
    "DataConfig": "config", "RunConfig": "config", "read_config": "config",
    "Run": "folder", "open_data": "folder", "open_run": "folder", "read_costs": "folder",
    "distill_student": "stages", "evaluate": "stages", "export": "stages",
    "forget_user": "stages", "prepare": "stages", "run_all": "stages", "teacher_labels": "stages",
    "train_students": "stages",
    "train_baseline": "baseline",
    "open_teacher": "teachers", "train_teacher": "teachers",
    "warn_of_little_headroom": "headroom",
    "trained_once": "artifact",
    "model_bytes": "candidates", "student_candidate": "candidates",
    "teacher_candidates": "candidates",
    "refresh": "refreshing", "let_answer": "served", "ServiceLog": "service_log",
    "Trial": "trial", "try_out": "trial",
    "sweep": "sizes",
    "check_drift": "upkeep", "gate": "upkeep", "tune_students": "upkeep",
}  # fmt: skip
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "DataConfig",
    "Lines",
    "Run",
    "RunConfig",
    "ServiceLog",
    "Silent",
    "Trial",
    "check_drift",
    "distill_student",
    "evaluate",
    "export",
    "forget_user",
    "gate",
    "let_answer",
    "model_bytes",
    "open_data",
    "open_run",
    "open_teacher",
    "prepare",
    "read_config",
    "read_costs",
    "refresh",
    "run_all",
    "student_candidate",
    "sweep",
    "teacher_candidates",
    "teacher_labels",
    "train_baseline",
    "train_students",
    "train_teacher",
    "trained_once",
    "try_out",
    "tune_students",
    "warn_of_little_headroom",
]
