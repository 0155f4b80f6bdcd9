"""How a bundle will be searched, and how much of the exact answers that search finds."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np

from distilrec.bundle.contents import BundleWeights
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import SearchInfo, SearchKind
from distilrec.data.dataset import Dataset
from distilrec.engine.embedding import embed_bag
from distilrec.engine.runtimes.kinds import check_search, make_runtime, runtime_of
from distilrec.measure.asked import user_asked
from distilrec.settings import Count, Settings

_EXACT_UP_TO, _QUANTISED_UP_TO = 50_000, 200_000  # items: what `auto` chooses
_RECALL_DEPTH, _RECALL_USERS = 10, 500


class BundleConfig(Settings, frozen=True):
    """How the served student finds the best items."""

    search: SearchKind | Literal["auto"] = "auto"
    """`exact`, `quantised` (a scan in 8 bits), `graph` (HNSW), or `auto`, by the number of items.
    """
    connectivity: Count = 32
    """Neighbours of an item in the graph; more finds more and takes longer."""
    expansion_add: Count = 128
    """Candidates that are looked at while the graph is built."""
    expansion_search: Count = 96
    """Candidates that are looked at for an answer."""


def choose_search(config: BundleConfig, kind: str, items: int) -> SearchInfo:
    """Return what `auto` stands for. Raises ConfigError for a search that this kind of student
    cannot do.
    """
    chosen = config.search
    if chosen == "auto":
        chosen = _search_for(items, runtime_of(kind).searches)
    check_search(chosen, kind, "bundle.search")
    if chosen != "graph":
        return SearchInfo(chosen)
    return SearchInfo(
        chosen,
        connectivity=config.connectivity,
        expansion_add=config.expansion_add,
        expansion_search=config.expansion_search,
    )


def _search_for(items: int, searches: Sequence[SearchKind]) -> SearchKind:
    if items > _QUANTISED_UP_TO and "graph" in searches and find_spec("usearch"):
        return "graph"
    return "quantised" if items > _EXACT_UP_TO and "quantised" in searches else "exact"


def bias_unit(kind: str, weights: BundleWeights) -> float:
    """Return half of the length of a query, `SearchInfo.bias_unit`."""
    return max(runtime_of(kind).query_length(weights.of_kind) / 2, 1e-6)


def search_recall(bundle: Bundle, dataset: Dataset) -> tuple[float, int]:
    """Return the share of the exact ten best unseen items that the search of a bundle finds, and
    for how many users this was asked.
    """
    asked, exact = make_runtime(bundle), make_runtime(bundle, "exact")
    rng = np.random.default_rng(0)
    users = rng.choice(dataset.users, min(_RECALL_USERS, dataset.users), replace=False)
    histories = dataset.histories(users, dataset.offsets[users + 1])
    features, everything = dataset.user_features, np.zeros(0, np.uint8)
    hits = wanted = 0
    for k, user in enumerate(users):
        state = exact.new_state()
        rows = slice(histories.offsets[k], histories.offsets[k + 1])
        exact.fold(state, histories.items[rows], histories.events[rows])
        known = embed_bag(
            zip(features.columns[user], features.weights[user], strict=True),
            bundle.weights.user_table,
        )
        known = user_asked(exact, known, histories, k)
        seen = np.zeros(0, np.int32) if dataset.info.repeats else histories.of(k)
        depth = min(_RECALL_DEPTH, dataset.catalogue_size)
        theirs, _ = exact.best(state, known, seen, everything, depth)
        ours, _ = asked.best(state, known, seen, everything, depth)
        hits += len(np.intersect1d(ours, theirs))
        wanted += len(theirs)
    return hits / max(wanted, 1), len(users)
