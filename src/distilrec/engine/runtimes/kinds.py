"""The runtimes by the kind of student."""

from __future__ import annotations

from types import ModuleType

from distilrec.bundle.checks import check_shapes, check_whole_numbers
from distilrec.bundle.format import Bundle, corrupted
from distilrec.bundle.manifest import WEIGHTS, SearchKind
from distilrec.engine.loops import loops_of
from distilrec.engine.runtimes.mlp import MlpRuntime
from distilrec.engine.runtimes.recurrent import RecurrentRuntime
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.runtimes.soft_tree import TreeRuntime
from distilrec.errors import BundleVersionError, ConfigError

# A row for each kind of student; `distilrec.networks.kinds` has the same rows for training.
RUNTIMES: dict[str, type[Runtime]] = {
    "recurrent": RecurrentRuntime,
    "mlp": MlpRuntime,
    "soft_tree": TreeRuntime,
}


def runtime_of(kind: str, source: str = "the model") -> type[Runtime]:
    """Return the runtime of a kind of student. source: what has that kind, for the message.

    Raises BundleVersionError for a kind that is not in the table.
    """
    if kind not in RUNTIMES:
        raise BundleVersionError(
            f"{source} has a student of kind {kind!r}; "
            f"this distilrec can run: {', '.join(RUNTIMES)}",
            fix="upgrade distilrec (pip install -U distilrec), or add the kind to the table "
            "RUNTIMES of distilrec.engine.runtimes.kinds",
            file=source,
        )
    return RUNTIMES[kind]


def check_search(search: SearchKind, kind: str, parameter: str) -> None:
    """Check that students of this kind can be searched this way; raises ConfigError."""
    searches = runtime_of(kind).searches
    if search not in searches:
        only = ", ".join(f'"{name}"' for name in searches)
        raise ConfigError(
            f"a student of kind {kind} cannot be searched by {search!r}",
            fix=f"leave {parameter} out, or use one of: {only}",
            parameter=parameter,
        )


def make_runtime(
    bundle: Bundle, search: SearchKind | None = None, kernels: ModuleType | None = None
) -> Runtime:
    """Return the runtime of a bundle's kind of student. search: in place of the bundle's own;
    kernels: as of `loops_of`, those compiled by numba by default.

    Raises BundleVersionError for an unknown kind, BundleCorruptedError for arrays that are not
    those of the kind, and ConfigError where this bundle or kind cannot be searched that way.
    """
    search = search or bundle.manifest.search.kind
    kind = runtime_of(bundle.manifest.kind, str(bundle.folder))
    check_search(search, bundle.manifest.kind, "search")
    try:
        own = bundle.weights.of_kind
        check_whole_numbers(own, kind.whole_numbers(bundle.manifest, own))
        check_shapes(own, kind.shapes(bundle.manifest, own))
    except ValueError as problem:
        raise corrupted(bundle.folder / WEIGHTS, str(problem)) from None
    return kind(bundle, search, kernels or loops_of("numba"))
