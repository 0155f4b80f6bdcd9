"""Logs and bundles of any size with the skew of real ones, for sizes that no public data set here
reaches.

Items: popularity falls as 1 / rank (Zipf), and each item belongs to one of many topics. Users: a
history of log-normal length (median 20 events, mean about 33, some with thousands), four fifths of
it from three topics of their own. What such data cannot show is quality; it shows what size costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec._version import __version__
from distilrec.bundle.contents import BundleCatalogue, BundleHistory, BundleWeights
from distilrec.bundle.format import read_bundle, write_bundle
from distilrec.bundle.manifest import GRAPH, Golden, Manifest, SearchInfo
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.search import build_graph
from distilrec.features.encoding import FeatureEncoder

TOPICS = 1_000
LONGEST = 2_000
_CHUNK = 100_000  # users
Ints = NDArray[np.int32]


def topics_of(items: int) -> Ints:
    """Return the topic of every item, (items,)."""
    return np.random.default_rng(1).integers(TOPICS, size=items).astype(np.int32)


def histories(users: int, items: int, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """Chunks of users: the length of each history, (users,), and their items one after the other,
    (events,).
    """
    topic = topics_of(items)
    order = np.argsort(topic, kind="stable").astype(np.int32)  # by topic, the popular first
    starts = np.searchsorted(topic[order], np.arange(TOPICS + 1))
    for chunk, first in enumerate(range(0, users, _CHUNK)):
        rng = np.random.default_rng([seed, chunk])
        some = min(_CHUNK, users - first)
        lengths = np.clip(rng.lognormal(np.log(20), 1.0, some), 3, LONGEST).astype(np.int32)
        owner = np.repeat(np.arange(some), lengths)
        topics = rng.integers(TOPICS, size=(some, 3))
        topic_of_event = topics[owner, rng.integers(3, size=len(owner))]  # (events,)
        size = starts[topic_of_event + 1] - starts[topic_of_event]
        # An index that falls as 1 / rank within n: n^u - 1 for u uniform in [0, 1).
        within = (np.exp(rng.random(len(owner)) * np.log(np.maximum(size, 1) + 1)) - 1).astype(
            np.int64
        )
        of_topic = order[np.minimum(starts[topic_of_event] + within, items - 1)]
        anywhere = (np.exp(rng.random(len(owner)) * np.log(items + 1)) - 1).astype(np.int32)
        yield (
            lengths,
            np.where(
                rng.random(len(owner)) < 0.8, of_topic, np.minimum(anywhere, items - 1)
            ).astype(np.int32),
        )


def synthetic_log(file: Path, events: int, items: int) -> Path:
    """Return a Parquet log of about this many events, in order of time, made on first use."""
    if file.is_file():
        return file
    import polars as pl

    file.parent.mkdir(parents=True, exist_ok=True)
    lengths, flat = zip(*histories(events // 33 + 1, items), strict=True)
    owner, chosen = (
        np.repeat(np.arange(sum(map(len, lengths))), np.concatenate(lengths)),
        np.concatenate(flat),
    )
    times = np.random.default_rng(4).integers(1_600_000_000, 1_700_000_000, len(owner))
    log = pl.DataFrame({"user": owner, "item": chosen, "timestamp": np.sort(times)})
    log = log.select(
        pl.format("user-{}", "user").alias("user_id"),
        pl.format("item-{}", "item").alias("item_id"),
        "timestamp",
    )
    log.sample(fraction=1.0, shuffle=True, seed=0).write_parquet(file)
    return file


def item_vectors(
    items: int, dim: int, gaussian: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors around the centre of their topic, (items, dim), and biases that fall with popularity,
    (items,).

    Length, spread over the channels and biases are like those of trained students: vectors of
    length 1 whose variances fall as c^-0.7 (an effective dimension, (sum of variances)^2 / sum of
    squares, of 15; trained: 11 on ML-1M, 13 on ML-100K, 22 on Online Retail), biases with a
    standard deviation of 1.25 (2.0, 1.6, 1.25).
    gaussian: independent coordinates of equal variance instead, which nothing that was trained has.
    """
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(TOPICS, dim)).astype(np.float32)
    independent = rng.standard_normal((items, dim), np.float32)
    vectors = (
        independent
        if gaussian
        else (centres[topics_of(items)] + 0.7 * independent)
        * np.arange(1, dim + 1) ** np.float32(-0.35)
    )
    vectors /= np.sqrt(np.mean(np.sum(vectors**2, axis=1)))
    biases = -0.4 * np.log(np.arange(1, items + 1) / items)
    return vectors.astype(np.float32), biases.astype(np.float32)


def synthetic_bundle(
    folder: Path,
    items: int,
    users: int,
    *,
    dim: int = 32,
    scales: int = 2,
    graph: bool = False,
    gaussian: bool = False,
) -> Path:
    """Return a bundle with made-up weights, written on first use.

    Its answers mean nothing; its costs are those of a trained one.
    """
    if (folder / "manifest.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vectors, biases = item_vectors(items, dim, gaussian)
    search = _graph_search(dim) if graph else SearchInfo()
    if graph:
        build_graph(vectors, biases, search, folder / GRAPH)
    manifest = _manifest(items, dim, search)
    weights = BundleWeights(
        vectors,
        biases,
        user_table=np.zeros((manifest.user_encoder.width, dim), np.float32),
        item_table=np.zeros((manifest.item_encoder.width, dim), np.float32),
        of_kind=_network(manifest, scales),
    )
    catalogue = BundleCatalogue(
        [f"item-{n}" for n in range(items)], [""] * items, np.zeros(items, np.int64), {}
    )
    history = _history(users, items)
    write_bundle(folder, manifest, weights, catalogue, history)
    golden = _golden(make_runtime(read_bundle(folder), "exact"), items)
    with_golden = msgspec.structs.replace(manifest, golden=(golden,))
    write_bundle(folder, with_golden, weights, catalogue, history)
    return folder


def _graph_search(dim: int) -> SearchInfo:
    return SearchInfo(
        "graph",
        connectivity=32,
        expansion_add=128,
        expansion_search=96,
        bias_unit=1.4 * dim**0.5 / 2,
    )


def _manifest(items: int, dim: int, search: SearchInfo) -> Manifest:
    return Manifest(
        kind="recurrent",
        dim=dim,
        items=items,
        parameters=0,
        event_types=("unknown", "interaction"),
        user_encoder=FeatureEncoder(()),
        item_encoder=FeatureEncoder(()),
        repeats=False,
        dataset="synthetic",
        dataset_fingerprint="",
        teacher="",
        metrics={},
        golden=(),
        files={},
        distilrec=__version__,
        search=search,
    )


def _network(manifest: Manifest, scales: int) -> dict[str, NDArray[np.float32]]:
    """Return the weights that only a recurrent student has."""
    dim, rng = manifest.dim, np.random.default_rng(3)
    inner, wide = (scales + 1) * dim, 4 * dim

    def weights(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1])).astype(np.float32)

    steps = np.geomspace(1, 128, scales)[:, None] * np.ones((1, dim))
    return {
        "gain": np.ones((2, dim), np.float32),
        "decay": np.exp(-1 / steps).astype(np.float32),
        "mix": 0.3 * weights(dim, scales * dim),
        "inner_norm": np.ones(inner, np.float32),
        "widen": weights(wide, inner),
        "widen_bias": np.zeros(wide, np.float32),
        "narrow": 0.3 * weights(dim, wide),
        "narrow_bias": np.zeros(dim, np.float32),
        "outer_norm": np.full(dim, 1.4, np.float32),
    }


def _history(users: int, items: int) -> BundleHistory:
    lengths, events = zip(*histories(users, items), strict=True)
    flat = np.concatenate(events)
    return BundleHistory(
        users=[f"user-{n}" for n in range(users)],
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64),
        items=flat,
        events=np.ones(len(flat), np.int32),
        user_columns=np.zeros((users, 0), np.int32),
        user_weights=np.zeros((users, 0), np.float32),
        end=0.0,
    )


def _golden(runtime: Runtime, items: int) -> Golden:
    """Return what the exact scan answers to a user with a short history."""
    seen = np.arange(0, items, max(1, items // 20), dtype=np.int32)
    state = runtime.new_state()
    runtime.fold(state, seen, np.ones(len(seen), np.int32))
    features = np.zeros(state.shape[1], np.float32)
    top, scores = runtime.best(state, features, seen, np.zeros(0, np.uint8), 10)
    return Golden(
        tuple(seen.tolist()), (1,) * len(seen), (), tuple(top.tolist()), tuple(scores.tolist())
    )
