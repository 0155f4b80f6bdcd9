"""The networks by their settings: from `StudentConfig` or `ModelConfig` to a model with fresh
weights.

`StudentConfig` allows the kinds that are in `STUDENTS` when this module is imported.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import torch

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError
from distilrec.networks.dnn import Dnn, DnnConfig
from distilrec.networks.kinds import STUDENTS
from distilrec.networks.sequence import SequenceModel
from distilrec.networks.student import Student, StudentSettings, kind_of
from distilrec.networks.transformer import Transformer, TransformerConfig

if TYPE_CHECKING:
    StudentConfig = StudentSettings
else:
    StudentConfig = reduce(or_, (student.settings for student in STUDENTS.values()))

ModelConfig = TransformerConfig | DnnConfig | StudentConfig


def student_class(config: StudentSettings) -> type[Student]:
    """Return the class of a student with these settings; raises ConfigError for an unknown kind."""
    kind = kind_of(config)
    if kind not in STUDENTS:
        raise ConfigError(
            f"{kind!r} is not a kind of student",
            fix=f"use one of: {', '.join(STUDENTS)}, or add the kind to the table STUDENTS of "
            "distilrec.networks.kinds",
            parameter="kind",
        )
    return STUDENTS[kind]


def build_model(config: ModelConfig, dataset: Dataset, seed: int) -> SequenceModel:
    """Return a model with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config:
            case TransformerConfig():
                return Transformer(dataset, config)
            case DnnConfig():
                return Dnn(dataset, config)
            case _:
                return student_class(config)(dataset, config)
