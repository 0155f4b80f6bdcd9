"""Time of one recommendation in this process, with all overhead, beside the bare kernel and the
same model in torch.

    python bench/engine.py

Bundles of the size of MovieLens 1M (`bench/bundles.py`), all 6,040 users with their histories in
memory, one thread. Prints a table and one JSON line; writes docs' figures to
bench/results/engine.{md,json}.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from bundles import ml_1m_bundle, ml_1m_torch_student  # noqa: E402

import distilrec  # noqa: E402
from distilrec.engine.filters import Condition, Filter  # noqa: E402

REQUESTS, TORCH_REQUESTS = 30_000, 300
RESULTS = Path(__file__).parent / "results"
TARGET_P50, TARGET_P99 = 25.0, 60.0
NEIGHBOURS = 16
WITH_NEIGHBOURS = f"recommend, {NEIGHBOURS} neighbours of 10 events"
WITH_TIME = "recommend, told the time"
TARGET_RATIOS = {WITH_NEIGHBOURS: 1.25, WITH_TIME: 1.15}  # to the student without


def percentiles(
    request: Callable[[str], object], users: list[str], count: int
) -> tuple[float, float]:
    """Median and 99th percentile in microseconds; every user in turn."""
    for user in users[:200]:
        request(user)
    times = np.empty(count)
    for n in range(count):
        user = users[n % len(users)]
        started = time.perf_counter_ns()
        request(user)
        times[n] = time.perf_counter_ns() - started
    p50, p99 = np.percentile(times, [50, 99]) / 1e3
    return float(p50), float(p99)


def measure(dim: int) -> list[dict[str, object]]:
    recommender = distilrec.load(ml_1m_bundle(dim))
    users = recommender.some_users(6_040)
    for user in users:
        recommender.recommend(user)
    other = distilrec.load(ml_1m_bundle(dim, NEIGHBOURS))
    timed = distilrec.load(ml_1m_bundle(dim, told_time=True))
    for user in users:
        other.recommend(user)
        timed.recommend(user)
    runtime, mask = recommender._runtime, recommender._filters.mask(None)
    held = {user: recommender.users.get(user) for user in users}
    drama = Filter(
        attributes={"genres": Condition(any_of=("Drama",)), "release_year": Condition(min=1990)}
    )
    ten = recommender.item_ids[:10]

    def kernel(user: str) -> object:
        u = held[user]
        return runtime.best(u.state, u.features, u.items, mask, 10)

    def event(user: str) -> object:
        return recommender.update([{"user_id": user, "item_id": ten[3]}])

    scorer, dataset = ml_1m_torch_student(dim)
    everyone = dataset.histories(np.arange(len(dataset.info.user_ids)), dataset.offsets[1:])
    place = {user: n for n, user in enumerate(dataset.info.user_ids)}

    def torch_request(user: str) -> object:
        one = everyone.select(place[user], place[user] + 1)
        scores = scorer.scores(one)[0]
        scores[one.items] = -np.inf
        best = np.argpartition(-scores, 10)[:10]
        return best[np.argsort(-scores[best])]

    cases: list[tuple[str, Callable[[str], object], int]] = [
        ("recommend, k = 10", recommender.recommend, REQUESTS),
        (WITH_NEIGHBOURS, other.recommend, REQUESTS),
        (WITH_TIME, timed.recommend, REQUESTS),
        ("the kernel alone", kernel, REQUESTS),
        (
            "recommend, filter on genre and year",
            lambda u: recommender.recommend(u, where=drama),
            REQUESTS,
        ),
        (
            "recommend, diversity .3",
            lambda u: recommender.recommend(u, diversity=0.3),
            REQUESTS // 3,
        ),
        ("rank 10 given items", lambda u: recommender.recommend(u, ten), REQUESTS // 3),
        ("explain 10 items", lambda u: recommender.explain_many(u, ten, 3), 1_000),
        ("update by one event", event, REQUESTS // 3),
        ("the same model in torch", torch_request, TORCH_REQUESTS),
    ]
    rows: list[dict[str, object]] = []
    for name, request, count in cases:
        p50, p99 = percentiles(request, users, count)
        rows.append({"dim": dim, "what": name, "p50_us": p50, "p99_us": p99})
    first = float(rows[0]["p50_us"])  # type: ignore[arg-type]
    for row in rows:
        row["ratio"] = float(row["p50_us"]) / first  # type: ignore[arg-type]
    bytes_each = recommender.users.nbytes / len(users)
    rows.append({"dim": dim, "what": "bytes of state and log per user", "bytes": bytes_each})
    return rows


def main() -> None:
    rows = [row for dim in (32, 64) for row in measure(dim)]
    lines = ["| dim | what | p50 | p99 | p50 / recommend |", "|---|---|---|---|---|"]
    for row in rows:
        if "p50_us" in row:
            lines.append(
                f"| {row['dim']} | {row['what']} | {row['p50_us']:,.1f} us | {row['p99_us']:,.1f} "
                f"us | {row['ratio']:.2f} |"
            )
        else:
            lines.append(f"| {row['dim']} | {row['what']} | {row['bytes']:,.0f} | | |")
    whole = rows[0]
    met = float(whole["p50_us"]) <= TARGET_P50 and float(whole["p99_us"]) <= TARGET_P99  # type: ignore[arg-type]
    largest = {
        what: max(float(row["ratio"]) for row in rows if row["what"] == what)  # type: ignore[arg-type]
        for what in TARGET_RATIOS
    }
    ratios_met = {what: largest[what] <= target for what, target in TARGET_RATIOS.items()}
    lines += [
        "",
        f"Target (dim 32): p50 <= {TARGET_P50:g} us, p99 <= {TARGET_P99:g} us: "
        f"{'met' if met else 'missed'}.",
        *(
            f"Target (both): {what}: <= {target:g} times without: "
            f"{'met' if ratios_met[what] else 'missed'}."
            for what, target in TARGET_RATIOS.items()
        ),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    record = {
        "benchmark": "engine",
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
        "met": met and all(ratios_met.values()),
    }
    print(json.dumps(record))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine.md").write_text(text)
    (RESULTS / "engine.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
