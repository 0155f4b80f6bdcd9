"""The students by their kind."""

from __future__ import annotations

from distilrec.networks.mlp import Mlp
from distilrec.networks.recurrent import Recurrent
from distilrec.networks.soft_tree import SoftTree
from distilrec.networks.student import Student

# A row for each kind; `distilrec.engine.runtimes.kinds` has the same rows for serving.
STUDENTS: dict[str, type[Student]] = {
    "recurrent": Recurrent,
    "mlp": Mlp,
    "soft_tree": SoftTree,
}
