"""The runtimes by the kind of student."""

from __future__ import annotations

from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import SearchKind
from distilrec.engine.runtimes.mlp import MlpRuntime
from distilrec.engine.runtimes.recurrent import RecurrentRuntime
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.runtimes.soft_tree import TreeRuntime
from distilrec.engine.search import check_search


def make_runtime(bundle: Bundle, search: SearchKind | None = None) -> Runtime:
    """The runtime of a bundle's kind of student. search: in place of the bundle's own.

    Raises ConfigError where this bundle or kind cannot be searched that way.
    """
    search = search or bundle.manifest.search.kind
    check_search(search, bundle.manifest.kind, "search")
    match bundle.manifest.kind:
        case "recurrent":
            return RecurrentRuntime(bundle, search)
        case "soft_tree":
            return TreeRuntime(bundle)
        case "mlp":
            return MlpRuntime(bundle)
