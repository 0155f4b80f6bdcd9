"""Public names of a package that are imported when they are first used, so that importing it stays
cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from distilrec.errors import missing_extra


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module's `__getattr__` (PEP 562). modules: the module of each public name, relative
    to the package.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{modules[name]}"), name)
        except ModuleNotFoundError as missing:
            if missing.name in {"torch", "polars"}:
                raise missing_extra(missing.name, "train") from None
            raise

    return get
