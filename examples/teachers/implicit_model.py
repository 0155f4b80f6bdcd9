"""A model of the `implicit` library as the teacher: alternating least squares.

python examples/teachers/implicit_model.py [--users 200] [--epochs 5]
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # implicit asks for it

from implicit.als import AlternatingLeastSquares
from shop import distill_from

from distilrec.data import Dataset
from distilrec.teachers import Teacher, from_implicit, training_matrix


def teacher(dataset: Dataset) -> Teacher:
    model = AlternatingLeastSquares(factors=64, regularization=0.1, iterations=15, random_state=0)
    model.fit(training_matrix(dataset), show_progress=False)
    return from_implicit(model, dataset, identity="als 64, seed 0", scale=10.0)


if __name__ == "__main__":
    distill_from("implicit", teacher)
