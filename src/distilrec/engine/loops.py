"""Which loops the engine runs: compiled by numba, or the same in numpy.

Neither is imported before it is asked for: with "numpy" numba is never loaded.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

from distilrec.errors import ConfigError

RuntimeName = Literal["numba", "numpy"]
_MODULES = {"numba": "kernels", "numpy": "plain_kernels"}


def loops_of(runtime: RuntimeName) -> ModuleType:
    """Return the module that holds the loops: `distilrec.engine.kernels` or
    `distilrec.engine.plain_kernels`, which have the same functions. Raises ConfigError.
    """
    if runtime not in _MODULES:
        names = ", ".join(f'"{name}"' for name in get_args(RuntimeName))
        raise ConfigError(
            f"there is no runtime {runtime!r}", fix=f"use one of: {names}", parameter="runtime"
        )
    return import_module(f"distilrec.engine.{_MODULES[runtime]}")
