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
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from numba import njit  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from synthetic import synthetic_bundle, synthetic_log  # noqa: E402

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).resolve().parent.parent / "runs" / "scale"
DIM, K = 32, 10
EVERYTHING = np.zeros(0, np.uint8)


def times_of(
    requests: dict[str, Callable[[int], object]], rounds: int, turn: int = 25
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each request, (rounds * turn,); they take turns: what disturbs the machine
    disturbs all of them.

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
    return {name: np.array(each) for name, each in taken.items()}


@njit(cache=True, fastmath=True)
def sum_of(numbers: NDArray[np.float32]) -> np.float32:
    """Return what the memory allows at best: every number is read once."""
    total = np.float32(0)
    for n in range(numbers.shape[0]):
        total += numbers[n]
    return total


def search(items: int, *, gaussian: bool = False) -> tuple[list[str], dict[str, object]]:
    """Time and recall of each search at this many items, beside reading the matrix once and others'
    libraries alone.

    gaussian: independent coordinates, without any structure that a graph could follow: its hardest
    case.
    """
    import faiss
    from usearch.index import Index

    from distilrec.bundle.format import read_bundle
    from distilrec.bundle.manifest import GRAPH
    from distilrec.engine.runtimes.kinds import make_runtime

    faiss.omp_set_num_threads(1)
    name = f"items-{items}-gaussian" if gaussian else f"items-{items}"
    folder = synthetic_bundle(RUNS / name, items, 5_000, graph=True, gaussian=gaussian)
    bundle = read_bundle(folder)
    runtimes = {kind: make_runtime(bundle, kind) for kind in ("exact", "quantised", "graph")}  # type: ignore[arg-type]
    vectors, biases = bundle.weights["vectors"], bundle.weights["biases"]
    matrix = np.ascontiguousarray(vectors).ravel()
    offsets, flat = bundle.history["offsets"], bundle.history["items"]
    nobody = np.zeros(DIM, np.float32)
    exact = runtimes["exact"]
    states, seen = [], []
    for user in range(400):
        state, own = exact.new_state(), flat[offsets[user] : offsets[user + 1]]
        exact.fold(state, own, np.ones(len(own), np.int32))
        states.append(state)
        seen.append(own)
    queries = [exact.query(state, nobody)[:DIM] for state in states]

    def recall(
        best: Callable[[int], NDArray[np.int32]], truth: Callable[[int], NDArray[np.int32]]
    ) -> float:
        return float(
            np.mean([len(np.intersect1d(best(n), truth(n))) / K for n in range(len(states))])
        )

    def of(kind: str) -> Callable[[int], NDArray[np.int32]]:
        return filtered(kind, EVERYTHING)

    half = (np.random.default_rng(0).random(items) < 0.5).astype(np.uint8)
    rare = (np.random.default_rng(0).random(items) < 0.005).astype(np.uint8)

    def filtered(kind: str, mask: NDArray[np.uint8]) -> Callable[[int], NDArray[np.int32]]:
        return lambda n: runtimes[kind].best(states[n % 400], nobody, seen[n % 400], mask, K)[0]

    # Others' libraries alone: nearest neighbours by inner product with the bias as one more
    # channel, nothing left out.
    points = np.column_stack([vectors, biases]).astype(np.float32)
    asked = [np.append(query, np.float32(1)).astype(np.float32) for query in queries]
    flat_index = faiss.IndexFlatIP(DIM + 1)
    flat_index.add(points)
    alone = Index.restore(str(folder / GRAPH), view=True)
    unit = bundle.manifest.search.bias_unit
    lifted = [np.concatenate([query, [unit, 0]]).astype(np.float32) for query in queries]
    requests: dict[str, Callable[[int], object]] = {
        "read the float32 matrix once": lambda n: sum_of(matrix),
        "exact": of("exact"),
        "quantised": of("quantised"),
        "graph": of("graph"),
        "graph, a filter that half passes": filtered("graph", half),
        "graph, a filter that .5% passes": filtered("graph", rare),
        "faiss IndexFlatIP alone": lambda n: flat_index.search(asked[n % 400][None], K),
        "usearch alone, the same graph, without the items beside it": lambda n: alone.search(
            lifted[n % 400], K, threads=1
        ),
    }
    alone.expansion_search = bundle.manifest.search.expansion_search
    taken = times_of(requests, 16)
    exact_alone = lambda n: flat_index.search(asked[n % 400][None], K)[1][0]  # noqa: E731
    recalls = {
        "quantised": recall(of("quantised"), of("exact")),
        "graph": recall(of("graph"), of("exact")),
        "graph, a filter that half passes": recall(
            filtered("graph", half), filtered("exact", half)
        ),
        "graph, a filter that .5% passes": recall(filtered("graph", rare), filtered("exact", rare)),
        "usearch alone, the same graph, without the items beside it": recall(
            lambda n: alone.search(lifted[n], K, threads=1).keys.astype(np.int32), exact_alone
        ),
    }
    read = float(np.median(taken["read the float32 matrix once"]))
    rows = [
        {
            "what": name,
            "p50_us": float(np.median(each)) * 1e6,
            "p99_us": float(np.quantile(each, 0.99)) * 1e6,
            "ratio": float(np.median(each)) / read,
            "recall": recalls.get(name, 1.0 if name == "exact" else None),
        }
        for name, each in taken.items()
    ]
    lines = [
        f"{items:,} items x {DIM}, "
        + ("independent coordinates" if gaussian else "vectors by topic")
        + f", one thread, {len(states)} users with histories, k = {K}",
        "",
    ]
    lines += ["| what | p50 | p99 | / reading the matrix | recall@10 |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['what']} | {row['p50_us']:,.0f} us | {row['p99_us']:,.0f} us | "
        f"{row['ratio']:.2f} | " + ("" if row["recall"] is None else f"{row['recall']:.4f}") + " |"
        for row in rows
    ]

    return lines, {"items": items, "structure": "none" if gaussian else "topics", "rows": rows}


def users(items: int, users: int) -> tuple[list[str], dict[str, object]]:
    """Start by memory map, then everybody in memory: bytes per user beside what their numbers alone
    would take.
    """
    import distilrec

    folder = synthetic_bundle(RUNS / f"users-{users}", items, users)
    began = time.perf_counter()
    recommender = distilrec.load(folder)
    first = time.perf_counter() - began
    gc.collect()
    before = resident()
    started = time.perf_counter()
    everybody = [f"user-{n}" for n in range(users)]
    for user in everybody:
        recommender.past(user, 1)
    seconds = time.perf_counter() - started
    del everybody
    gc.collect()
    after = resident()
    one = recommender.users.peek("user-0")
    assert one is not None
    events = int(recommender._bundle.history["offsets"][-1])
    # These users have no features: they share one vector of zeros.
    theory = one.state.nbytes + events * 8 / users
    each = (after - before) / users
    row = {
        "items": items,
        "users": users,
        "events": events,
        "start_seconds": first,
        "fold_seconds": seconds,
        "bytes_per_user": each,
        "theory": theory,
        "ratio": each / theory,
    }
    lines = [
        "| users | events | start | all folded in | resident per user | numbers per user | ratio |",
        "|---|---|---|---|---|---|---|",
        f"| {users:,} | {events:,} | {first:.2f} s | {seconds:.0f} s | {each:,.0f} B | "
        f"{theory:,.0f} B "
        f"| {each / theory:.2f} |",
    ]
    return lines, row


def prepare(sizes: tuple[int, ...]) -> tuple[list[str], dict[str, object]]:
    """Time and peak memory of `prepare_dataset` on Parquet logs of growing size, each in a process
    of its own.
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
        events, people, items, seconds, peak = (float(each) for each in done.stdout.split())
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
    """Time of preparation, of labels and of training by one worker and by two, on a Ray cluster of
    two nodes here.

    The workers are there before the clock starts; what this process does alone (vocabulary, files)
    is in the time.
    """
    import ray
    from ray.cluster_utils import Cluster

    from distilrec import Schema, prepare_dataset
    from distilrec.labels.extract import LabelConfig, extract_labels
    from distilrec.networks.recurrent import RecurrentConfig
    from distilrec.networks.transformer import TransformerConfig
    from distilrec.scale.ray_workers import RayWorkers
    from distilrec.training.options import Epoch, RunOptions, TrainingConfig
    from distilrec.training.trained import TrainedModel, train_model

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    log = synthetic_log(RUNS / "log-10000000.parquet", 10_000_000, items=100_000)
    small_log = synthetic_log(RUNS / f"log-{items}-items.parquet", 300_000, items=items)
    schema = Schema(timestamp="timestamp")
    small = prepare_dataset(small_log, schema, name="synthetic")
    teacher = train_model(
        TransformerConfig(dim=64, layers=2, max_history=100),
        small,
        TrainingConfig(epochs=1, positions=64, negatives=64),
        seed=0,
    )
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    seconds: dict[str, dict[int, float]] = {}

    def prepared(workers: RayWorkers) -> object:
        return prepare_dataset(log, schema, workers=workers, scratch=RUNS / "ray-parts")

    def labelled(workers: RayWorkers) -> object:
        with tempfile.TemporaryDirectory(dir=RUNS) as folder:
            return extract_labels(
                teacher,
                small,
                Path(folder),
                LabelConfig(),
                seed=0,
                options=RunOptions(workers=workers),
            )

    def training(report: Callable[[Epoch, int], None]) -> TrainedModel:
        config = TrainingConfig(epochs=2, batch_size=128)
        return train_model(
            RecurrentConfig(max_history=100),
            small,
            config,
            seed=0,
            options=RunOptions(on_epoch=report),
        )

    def trained(workers: RayWorkers) -> float:
        """Seconds of the second epoch: the first one warms up."""
        epochs: list[Epoch] = []
        workers.together(training, lambda epoch, total: epochs.append(epoch))
        return epochs[1].seconds - epochs[0].seconds

    for count in (1, 2):
        workers = RayWorkers(cluster.address, count)
        list(workers.map(_import_all, None, range(count)))
        for name, work in (("preparation, 10M events", prepared), ("labels", labelled)):
            began = time.perf_counter()
            work(workers)
            seconds.setdefault(name, {})[count] = time.perf_counter() - began
        seconds.setdefault("training, one epoch", {})[count] = trained(workers)
        workers.close()
    ray.shutdown()
    cluster.shutdown()
    lines = ["| what | one worker | two | speed-up |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {s[1]:.1f} s | {s[2]:.1f} s | {s[1] / s[2]:.2f} |"
        for name, s in seconds.items()
    ]
    return lines, {
        "seconds": {name: list(each.values()) for name, each in seconds.items()},
        "speedup": {name: each[1] / each[2] for name, each in seconds.items()},
    }


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
