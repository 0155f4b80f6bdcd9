"""The best items of a large catalogue: an exact scan, a scan in integers, or a graph.

What the last two find is scored again from the float32 vectors: an answer may miss an item, it
never holds a wrong score. How much is missed was measured when the bundle was exported
(`manifest.search`).
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import SearchInfo, SearchKind
from distilrec.engine.items import TILE, Floats, ItemTable, Mask, Places, channels_of
from distilrec.errors import BundleCorruptedError, ConfigError, MissingExtraError
from distilrec.files import replacing

_ALWAYS = 1_024  # items that are scored whatever the graph finds
_IN_CACHE = 50_000  # items up to which the exact scan of the runtime is the faster one
_CHUNK = 65_536  # items that are quantised at once
_FEW = 20_000  # items that pass a filter and are simply all scored
_MOST = 2_000  # neighbours that are asked of the graph; beyond that a scan is faster


class Added(NamedTuple):
    """What a user adds to the scores of a few items. biases: (items,), with that in them; items:
    those whose bias is another than that of the table, some perhaps twice.
    """

    biases: Floats
    items: Places


class Search(Protocol):
    """Finds the best items for a query, (dim,) float32, among those of an `ItemTable`."""

    def best(
        self, query: Floats, seen: Places, mask: Mask, k: int, added: Added | None = None
    ) -> tuple[Places, Floats]:
        """Return the k best items that are not in `seen` and pass the mask, best first; see
        `Runtime.best`.

        added: biases in place of those of the table.
        """
        ...

    def put_item(self, item: int) -> None:
        """Take over the vector of this item, which is new."""
        ...


def make_search(
    kind: SearchKind, items: ItemTable, bundle: Bundle, kernels: ModuleType
) -> Search | None:
    """Return the search of this kind over a bundle's items; None for the exact scan of a catalogue
    that fits into the caches, which is part of the runtime.

    Raises ConfigError where the bundle has no graph, and MissingExtraError where there is no
    usearch.
    """
    match kind:
        case "exact":
            return None if items.count <= _IN_CACHE else ExactSearch(items, kernels)
        case "quantised":
            return QuantisedSearch(items, kernels)
        case "graph":
            if bundle.graph is None:
                raise ConfigError(
                    f"the bundle in {bundle.folder} has no graph to search by",
                    fix='export it with [bundle] search = "graph", or use search = "quantised"',
                    parameter="search",
                )
            return GraphSearch(items, bundle.graph, bundle.manifest.search, kernels)


class ExactSearch:
    """The product of the query with every vector, as they lie in memory or in the mapped file."""

    def __init__(self, items: ItemTable, kernels: ModuleType) -> None:
        self._items, self._kernels = items, kernels
        self._scores = np.empty(items.count, np.float32)

    def best(
        self, query: Floats, seen: Places, mask: Mask, k: int, added: Added | None = None
    ) -> tuple[Places, Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        biases = added.biases if added else self._items.biases
        count = self._kernels.best_by_rows(
            query, self._items.vectors, biases, seen, mask, self._scores, items, scores
        )  # fmt: skip
        return items[:count], scores[:count]

    def put_item(self, item: int) -> None:
        self._scores = np.empty(self._items.count, np.float32)


class QuantisedSearch:
    """A scan over 8-bit vectors, a quarter of the bytes, and exact scores for what comes
    out first.
    """

    def __init__(self, items: ItemTable, kernels: ModuleType) -> None:
        self._items, self._kernels = items, kernels
        dim = items.vectors.shape[1]
        self._columns = np.zeros((channels_of(dim), items.room), np.int8)
        self._scales = np.zeros(items.room, np.float32)
        for start in range(0, items.count, _CHUNK):
            self._quantise(slice(start, min(start + _CHUNK, items.count)))
        self._sums = np.empty(TILE, np.int32)
        self._scores = np.empty(items.count, np.float32)

    def best(
        self, query: Floats, seen: Places, mask: Mask, k: int, added: Added | None = None
    ) -> tuple[Places, Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        biases = added.biases if added else self._items.biases
        count = self._kernels.best_quantised(
            query, self._columns, self._scales, self._items.vectors, biases,
            seen, mask, 2 * k + 64, self._sums, self._scores, items, scores,
        )  # fmt: skip
        return items[:count], scores[:count]

    def put_item(self, item: int) -> None:
        if missing := self._items.room - len(self._scales):
            self._columns = np.pad(self._columns, ((0, 0), (0, missing)))
            self._scales = np.pad(self._scales, (0, missing))
        self._quantise(slice(item, item + 1))
        self._scores = np.empty(self._items.count, np.float32)

    def _quantise(self, items: slice) -> None:
        """v_i = scale_i * (integers in [-127, 127]), scale_i = max |v_i| / 127."""
        vectors = self._items.vectors[items]
        self._scales[items] = np.maximum(np.abs(vectors).max(axis=1, initial=0.0), 1e-30) / 127
        self._columns[: vectors.shape[1], items] = (
            np.rint(vectors / self._scales[items, None]).astype(np.int8).T
        )


class GraphSearch:
    """Neighbours in a graph (HNSW, Malkov and Yashunin 2018) over the items of the bundle.

    The items with the largest norms, which are the answer more often than others, are not in the
    graph: they are always scored, like those that come or change later.

    Where the graph is the slower way (a filter that few items pass, a user who has had nearly all
    that is near), every item that passes is scored, or the catalogue is scanned in integers.
    """

    def __init__(self, items: ItemTable, file: Path, info: SearchInfo, kernels: ModuleType) -> None:
        self._items, self._kernels = items, kernels
        self._graph = _open_graph(file, items.vectors.shape[1] + 2)
        self._graph.expansion_search = info.expansion_search
        order = np.argsort(_square_norms(items.vectors, items.biases, info), kind="stable")
        self._beside = np.sort(order[len(self._graph) :]).astype(np.int32)
        self._scan = QuantisedSearch(items, kernels)
        self._query = np.zeros(items.vectors.shape[1] + 2, np.float32)
        self._query[-2] = info.bias_unit
        self._marked = np.zeros(items.room, np.uint8)

    def best(
        self, query: Floats, seen: Places, mask: Mask, k: int, added: Added | None = None
    ) -> tuple[Places, Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        known = (query, self._items.vectors, added.biases if added else self._items.biases)
        # The graph knows nothing of what a user adds: these items are always scored
        beside = np.concatenate([self._beside, added.items]) if added else self._beside
        share = 1.0
        if len(mask):
            passing = int(np.count_nonzero(mask))
            if passing <= _FEW:
                allowed = np.flatnonzero(mask).astype(np.int32)
                found, _ = self._kernels.best_of(
                    *known, allowed, 0, seen, mask, self._marked, items, scores
                )
                return items[:found], scores[:found]
            share = passing / len(mask)
        count = int(1.5 * k / share) + 16
        if share < 1:  # look as much further as the mask leaves out
            count = max(count, int(self._graph.expansion_search / share))
        self._query[:-2] = query
        while count <= _MOST:
            near = self._graph.search(self._query, count, threads=1).keys.astype(np.int32)
            candidates = np.concatenate([near, beside])
            found, left = self._kernels.best_of(
                *known, candidates, len(near), seen, mask, self._marked, items, scores
            )
            if left >= k:
                return items[:found], scores[:found]
            count *= 3
        return self._scan.best(query, seen, mask, k, added)

    def put_item(self, item: int) -> None:
        self._scan.put_item(item)
        if item not in self._beside:  # new, or found in the graph where its old vector was
            self._beside = np.append(self._beside, np.int32(item))
        if len(self._marked) < self._items.room:
            self._marked = np.zeros(self._items.room, np.uint8)


def build_graph(
    vectors: Floats, biases: Floats, info: SearchInfo, file: Path, threads: int = 0
) -> None:
    """Write the graph over these items, (items, dim) and (items,), in the format of usearch.

    The best score becomes the nearest neighbour: x = [v, b / u, sqrt(M^2 - |v|^2 - (b / u)^2)] with
    M the largest norm, the query [q, u, 0] (Bachrach et al. 2014, sec. 3) and u = `info.bias_unit`.
    The items with the largest norms are left
    out: they would make M, and with it the last channel, large for all others. threads: 0 is all.
    Raises MissingExtraError without usearch.
    """
    index_type = _usearch()
    square = _square_norms(vectors, biases, info)
    inside = np.sort(
        np.argsort(square, kind="stable")[: len(square) - min(_ALWAYS, len(square) // 16)]
    )
    last = np.sqrt(square[inside].max(initial=0.0) - square[inside])
    points = np.column_stack([vectors[inside], biases[inside] / info.bias_unit, last]).astype(
        np.float32
    )
    graph = index_type(
        ndim=points.shape[1],
        metric="l2sq",
        dtype="f16",
        connectivity=info.connectivity,
        expansion_add=info.expansion_add,
        enable_key_lookups=False,
    )
    graph.add(inside.astype(np.uint64), points, threads=threads)
    with replacing(file) as new:  # the old one may be mapped by a service
        graph.save(str(new))


def _square_norms(vectors: Floats, biases: Floats, info: SearchInfo) -> Floats:
    """Return |v|^2 + (b / u)^2, (items,)."""
    norms: Floats = np.einsum("id,id->i", vectors, vectors) + (biases / info.bias_unit) ** 2
    return norms


def _open_graph(file: Path, dim: int) -> Any:
    index_type = _usearch()
    graph = index_type.restore(str(file), view=True)  # by memory map
    if graph is None or graph.ndim != dim:
        raise BundleCorruptedError(
            f"{file} is no graph over vectors of this bundle",
            fix="export the bundle again",
            file=str(file),
        )
    return graph


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise MissingExtraError(
            "a graph over the items needs the package usearch",
            fix='pip install "distilrec[ann]", or load the bundle with search="quantised" '
            "(serve: --search quantised)",
            extra="ann",
        ) from None
    return Index
