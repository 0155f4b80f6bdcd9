"""Teachers: trained here, in closed form, from a file, a function or another library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.teachers.adapters.implicit import from_implicit, training_matrix
    from distilrec.teachers.adapters.keras import from_keras, keras_training_data
    from distilrec.teachers.adapters.recbole import from_recbole, write_atomic_file
    from distilrec.teachers.adapters.rectools import from_rectools, training_frame
    from distilrec.teachers.external import ScoresConfig, function_teacher, read_scores
    from distilrec.teachers.teacher import Teacher

_MODULES = {
    "ScoresConfig": "external",
    "Teacher": "teacher",
    "from_implicit": "adapters.implicit",
    "from_keras": "adapters.keras",
    "from_recbole": "adapters.recbole",
    "from_rectools": "adapters.rectools",
    "function_teacher": "external",
    "keras_training_data": "adapters.keras",
    "read_scores": "external",
    "training_frame": "adapters.rectools",
    "training_matrix": "adapters.implicit",
    "write_atomic_file": "adapters.recbole",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "ScoresConfig",
    "Teacher",
    "from_implicit",
    "from_keras",
    "from_recbole",
    "from_rectools",
    "function_teacher",
    "keras_training_data",
    "read_scores",
    "training_frame",
    "training_matrix",
    "write_atomic_file",
]
