"""What size costs: a million items on one core, a million users in memory, ten million events
prepared, two workers.

    python bench/scale.py [--only search users prepare ray] [--items 1000000] [--users 1000000]

Synthetic data with the skew of real ones (`bench/synthetic.py`). Ratios are measured side by side
in one run. Prints tables and one JSON line for each part, and writes them into
`bench/results/scale-PART.{md,json}`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from numba import njit  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from synthetic import synthetic_bundle, synthetic_log  # noqa: E402

from distilrec.bundle.format import Bundle, read_bundle  # noqa: E402
from distilrec.bundle.manifest import GRAPH, SearchKind  # noqa: E402
from distilrec.engine.runtimes.kinds import make_runtime  # noqa: E402
from distilrec.engine.runtimes.runtime import Runtime  # noqa: E402

if TYPE_CHECKING:
    from distilrec.data.dataset import Dataset
    from distilrec.scale.ray_workers import RayWorkers
    from distilrec.training.trained import TrainedModel

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).resolve().parent.parent / "runs" / "scale"
DIM, K = 32, 10
EVERYTHING = np.zeros(0, np.uint8)
NO_FEATURES = np.zeros(DIM, np.float32)
QUERIES = 400
_READING = "read the float32 matrix once"


def times_of(
    requests: dict[str, Callable[[int], object]], rounds: int, turn: int = 25
) -> dict[str, NDArray[np.float64]]:
    """Return the seconds of each request, (rounds * turn,); they take turns: what disturbs the
    machine disturbs all of them.

    The first requests of a turn find the caches full of what others have read; they are measured
    like the rest.
    """
    for request in requests.values():
        request(0)
    taken: dict[str, list[float]] = {name: [] for name in requests}
    for number in range(rounds):
        for name, request in requests.items():
            for n in range(number * turn, (number + 1) * turn):
                began = time.perf_counter()
                request(n)
                taken[name].append(time.perf_counter() - began)
    return {name: np.array(seconds) for name, seconds in taken.items()}


@njit(cache=True, fastmath=True)
def sum_of(numbers: NDArray[np.float32]) -> np.float32:
    """Return what the memory allows at best: every number is read once."""
    total = np.float32(0)
    for n in range(numbers.shape[0]):
        total += numbers[n]
    return total


@dataclass(frozen=True)
class Search:
    """A search: its request for a number of a query, the items that it finds, and what an exact
    search finds; nothing of the latter where no recall is measured.
    """

    request: Callable[[int], object]
    found: Callable[[int], NDArray[np.int32]] | None = None
    exact: Callable[[int], NDArray[np.int32]] | None = None

    def recall(self) -> float | None:
        """Return the mean share of the exact ten that it finds."""
        if self.found is None or self.exact is None:
            return None
        return float(
            np.mean([len(np.intersect1d(self.found(n), self.exact(n))) / K for n in range(QUERIES)])
        )


def search(items: int, *, gaussian: bool = False) -> tuple[list[str], dict[str, object]]:
    """Return time and recall of each search at this many items, beside reading the matrix once and
    other libraries alone.

    gaussian: independent coordinates, without any structure that a graph could follow: its hardest
    case.
    """
    name = f"items-{items}-gaussian" if gaussian else f"items-{items}"
    folder = synthetic_bundle(RUNS / name, items, 5_000, graph=True, gaussian=gaussian)
    bundle = read_bundle(folder)
    matrix = np.ascontiguousarray(bundle.weights.vectors).ravel()
    searches = {_READING: Search(lambda n: sum_of(matrix))}
    searches |= _engine_searches(bundle, items) | _library_searches(bundle, folder)
    taken = times_of({name: search.request for name, search in searches.items()}, 16)
    read = float(np.median(taken[_READING]))
    rows = [
        {
            "what": name,
            "p50_us": float(np.median(seconds)) * 1e6,
            "p99_us": float(np.quantile(seconds, 0.99)) * 1e6,
            "ratio": float(np.median(seconds)) / read,
            "recall": searches[name].recall(),
        }
        for name, seconds in taken.items()
    ]
    lines = [
        f"{items:,} items x {DIM}, "
        + ("independent coordinates" if gaussian else "vectors by topic")
        + f", one thread, {QUERIES} users with histories, k = {K}",
        "",
        "| what | p50 | p99 | / reading the matrix | recall@10 |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['what']} | {row['p50_us']:,.0f} us | {row['p99_us']:,.0f} us | "
        f"{row['ratio']:.2f} | " + ("" if row["recall"] is None else f"{row['recall']:.4f}") + " |"
        for row in rows
    ]
    return lines, {"items": items, "structure": "none" if gaussian else "topics", "rows": rows}


class Users:
    """The states and the seen items of the first users of a bundle."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        assert bundle.history is not None
        offsets, items = bundle.history.offsets, bundle.history.items
        self.seen = [items[offsets[user] : offsets[user + 1]] for user in range(QUERIES)]
        self.states = []
        for seen in self.seen:
            state = runtime.new_state()
            runtime.fold(state, seen, np.ones(len(seen), np.int32))
            self.states.append(state)


def _engine_searches(bundle: Bundle, items: int) -> dict[str, Search]:
    """Return the searches of the engine, over all items and with filters."""
    kinds: tuple[SearchKind, ...] = ("exact", "quantised", "graph")
    runtimes = {kind: make_runtime(bundle, kind) for kind in kinds}
    users = Users(bundle, runtimes["exact"])

    def best(kind: SearchKind, mask: NDArray[np.uint8]) -> Callable[[int], NDArray[np.int32]]:
        return lambda n: runtimes[kind].best(
            users.states[n % QUERIES], NO_FEATURES, users.seen[n % QUERIES], mask, K
        )[0]

    def search(kind: SearchKind, mask: NDArray[np.uint8] = EVERYTHING) -> Search:
        return Search(best(kind, mask), best(kind, mask), best("exact", mask))

    half = (np.random.default_rng(0).random(items) < 0.5).astype(np.uint8)
    rare = (np.random.default_rng(0).random(items) < 0.005).astype(np.uint8)
    return {
        "exact": search("exact"),
        "quantised": search("quantised"),
        "graph": search("graph"),
        "graph, a filter that half passes": search("graph", half),
        "graph, a filter that .5% passes": search("graph", rare),
    }


def _library_searches(bundle: Bundle, folder: Path) -> dict[str, Search]:
    """Return the searches of other libraries alone: nearest neighbours by inner product with the
    bias as one more channel, nothing left out.
    """
    import faiss
    from usearch.index import Index

    faiss.omp_set_num_threads(1)
    exact = make_runtime(bundle, "exact")
    queries = [exact.query(state, NO_FEATURES)[:DIM] for state in Users(bundle, exact).states]
    vectors, biases = bundle.weights.vectors, bundle.weights.biases
    with_one = [np.append(query, np.float32(1)).astype(np.float32) for query in queries]
    flat = faiss.IndexFlatIP(DIM + 1)
    flat.add(np.column_stack([vectors, biases]).astype(np.float32))
    graph = Index.restore(str(folder / GRAPH), view=True)
    graph.expansion_search = bundle.manifest.search.expansion_search
    unit = bundle.manifest.search.bias_unit
    lifted = [np.concatenate([query, [unit, 0]]).astype(np.float32) for query in queries]

    def in_flat(n: int) -> Any:
        return flat.search(with_one[n % QUERIES][None], K)

    def in_graph(n: int) -> Any:
        return graph.search(lifted[n % QUERIES], K, threads=1)

    return {
        "faiss IndexFlatIP alone": Search(in_flat),
        "usearch alone, the same graph, without the items beside it": Search(
            in_graph,
            lambda n: in_graph(n).keys.astype(np.int32),
            lambda n: in_flat(n)[1][0],
        ),
    }


def users(items: int, users: int) -> tuple[list[str], dict[str, object]]:
    """Load a bundle by memory map, then read all users into memory: bytes per user beside what
    their numbers alone would take.
    """
    import distilrec

    folder = synthetic_bundle(RUNS / f"users-{users}", items, users)
    began = time.perf_counter()
    recommender = distilrec.load(folder)
    first = time.perf_counter() - began
    gc.collect()
    before = resident()
    started = time.perf_counter()
    user_ids = [f"user-{n}" for n in range(users)]
    for user in user_ids:
        recommender.past(user, 1)
    seconds = time.perf_counter() - started
    del user_ids
    gc.collect()
    after = resident()
    user_0 = recommender.users.peek("user-0")
    assert user_0 is not None
    history = recommender._sessions._history
    assert history is not None
    events = int(history.offsets[-1])
    # These users have no features: they share one vector of zeros.
    theory = user_0.state.nbytes + events * 8 / users
    bytes_per_user = (after - before) / users
    row = {
        "items": items,
        "users": users,
        "events": events,
        "start_seconds": first,
        "fold_seconds": seconds,
        "bytes_per_user": bytes_per_user,
        "theory": theory,
        "ratio": bytes_per_user / theory,
    }
    lines = [
        "| users | events | start | all folded in | resident per user | numbers per user | ratio |",
        "|---|---|---|---|---|---|---|",
        f"| {users:,} | {events:,} | {first:.2f} s | {seconds:.0f} s | "
        f"{bytes_per_user:,.0f} B | "
        f"{theory:,.0f} B "
        f"| {bytes_per_user / theory:.2f} |",
    ]
    return lines, row


def prepare(sizes: tuple[int, ...]) -> tuple[list[str], dict[str, object]]:
    """Return time and peak memory of `prepare_dataset` on Parquet logs of growing size, each in a
    process of its own.
    """
    rows = []
    for size in sizes:
        file = synthetic_log(RUNS / f"log-{size}.parquet", size, items=100_000)
        code = (
            "import sys, time; from distilrec import Schema, prepare_dataset; began = "
            "time.perf_counter();"
            "from distilrec.training.memory import peak_memory;"
            "data = prepare_dataset(sys.argv[1], Schema(timestamp='timestamp'), name='synthetic');"
            "print(len(data.items), data.users, data.catalogue_size, time.perf_counter() - began,"
            "peak_memory())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
        )
        events, people, items, seconds, peak = map(float, done.stdout.split())
        rows.append(
            {
                "events": events,
                "users": people,
                "items": items,
                "seconds": seconds,
                "peak_bytes": peak,
            }
        )
    lines = [
        "| events | users | items | time | per million events | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['events']:,.0f} | {row['users']:,.0f} | {row['items']:,.0f} | "
        f"{row['seconds']:.1f} s "
        f"| {row['seconds'] / row['events'] * 1e6:.2f} s | {row['peak_bytes'] / 2**30:.2f} GiB |"
        for row in rows
    ]
    growth = (rows[-1]["seconds"] / rows[0]["seconds"]) / (rows[-1]["events"] / rows[0]["events"])
    lines += ["", f"Time grows by {growth:.2f} x the growth of the log (1 is linear)."]
    return lines, {"rows": rows, "growth": growth}


def ray_speedup(items: int) -> tuple[list[str], dict[str, object]]:
    """Return the time of preparation, of labels and of training by one worker and by two, on a Ray
    cluster of two nodes here.

    The workers are there before the clock starts; what this process does alone (vocabulary, files)
    is in the time.
    """
    import ray
    from ray.cluster_utils import Cluster

    from distilrec import Schema, prepare_dataset
    from distilrec.scale.ray_workers import RayWorkers

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    log = synthetic_log(RUNS / "log-10000000.parquet", 10_000_000, items=100_000)
    small_log = synthetic_log(RUNS / f"log-{items}-items.parquet", 300_000, items=items)
    schema = Schema(timestamp="timestamp")
    small = prepare_dataset(small_log, schema, name="synthetic")
    teacher = _teacher(small)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    work: dict[str, Callable[[RayWorkers], float]] = {
        "preparation, 10M events": lambda workers: _seconds_of(
            lambda: prepare_dataset(log, schema, workers=workers, scratch=RUNS / "ray-parts")
        ),
        "labels": lambda workers: _seconds_of(lambda: _label(teacher, small, workers)),
        "training, one epoch": lambda workers: _epoch_seconds(small, workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for count in (1, 2):
        workers = RayWorkers(cluster.address, count)
        list(workers.map(_import_all, None, range(count)))
        for name, measured in work.items():
            seconds[name].append(measured(workers))
        workers.close()
    ray.shutdown()
    cluster.shutdown()
    lines = ["| what | one worker | two | speed-up |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one:.1f} s | {two:.1f} s | {one / two:.2f} |"
        for name, (one, two) in seconds.items()
    ]
    return lines, {
        "seconds": seconds,
        "speedup": {name: one / two for name, (one, two) in seconds.items()},
    }


def _teacher(dataset: Dataset) -> TrainedModel:
    from distilrec.networks.transformer import TransformerConfig
    from distilrec.training.options import TrainingConfig
    from distilrec.training.trained import train_model

    return train_model(
        TransformerConfig(dim=64, layers=2, max_history=100),
        dataset,
        TrainingConfig(epochs=1, positions=64, negatives=64),
        seed=0,
    )


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _label(teacher: TrainedModel, dataset: Dataset, workers: RayWorkers) -> None:
    from distilrec.labels.extract import LabelConfig, extract_labels
    from distilrec.training.options import RunOptions

    options = RunOptions(workers=workers)
    with tempfile.TemporaryDirectory(dir=RUNS) as folder:
        extract_labels(teacher, dataset, Path(folder), LabelConfig(), seed=0, options=options)


def _epoch_seconds(dataset: Dataset, workers: RayWorkers) -> float:
    """Return the seconds of the second epoch: the first one warms up."""
    from distilrec.networks.recurrent import RecurrentConfig
    from distilrec.training.options import Epoch, RunOptions, TrainingConfig
    from distilrec.training.trained import train_model

    def training(report: Callable[[Epoch, int], None]) -> TrainedModel:
        config = TrainingConfig(epochs=2, batch_size=128)
        options = RunOptions(on_epoch=report)
        return train_model(
            RecurrentConfig(max_history=100), dataset, config, seed=0, options=options
        )

    epochs: list[Epoch] = []
    workers.together(training, lambda epoch, total: epochs.append(epoch))
    return epochs[1].seconds - epochs[0].seconds


def _import_all(task: object, shard: int) -> None:
    """Import what a worker has imported once it has worked."""
    import distilrec.data.preparation
    import distilrec.labels.extract  # noqa: F401

    time.sleep(1)  # so that every worker gets one


def resident() -> int:
    """Resident bytes of this process that are its own, without mapped files."""
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ["search", "users", "prepare", "ray"]
    parser.add_argument("--only", nargs="*", choices=every, default=every)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    arguments = parser.parse_args()
    parts: dict[str, list[Callable[[], tuple[list[str], dict[str, object]]]]] = {
        "search": [
            *(partial(search, size) for size in (10_000, 100_000, arguments.items)),
            partial(search, arguments.items, gaussian=True),
        ],
        "prepare": [partial(prepare, (1_000_000, 3_000_000, 10_000_000, 30_000_000))],
        "users": [partial(users, 100_000, arguments.users)],
        "ray": [partial(ray_speedup, 10_000)],
    }
    for part in arguments.only:
        lines: list[str] = []
        records = []
        for measure in parts[part]:
            more, record = measure()
            print("\n".join(more) + "\n", flush=True)
            lines += [*more, ""]
            records.append(record)
        line = json.dumps({"bench": f"scale-{part}", "runs": records})
        print(line)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"scale-{part}.md").write_text("\n".join(lines))
        (RESULTS / f"scale-{part}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
