"""What the stores cost: the time of a durable commit of 1 and of 100 events, and of asking about a
user whose log has nothing new, or as a whole (50 events).

    python bench/stores.py [--seconds 5]

Servers of their own on this machine: SQLite with its usual settings, Redis with `appendfsync
always`, PostgreSQL with `fsync = on`. The stores take turns, so that what else the machine does
falls on all alike. Writes bench/results/stores.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import servers  # noqa: E402

from distilrec.stores.opening import open_store  # noqa: E402
from distilrec.stores.records import Since, Store, StoredEvent  # noqa: E402

RESULTS = Path(__file__).parent / "results"
_ROUNDS, _USERS, _HISTORY = 5, 1_000, 50
_NUMBERS = count()


def batch(size: int) -> list[StoredEvent]:
    """Return new events of as many users as there are, in turn."""
    now = time.time()
    numbers = [next(_NUMBERS) for _ in range(size)]
    return [
        StoredEvent(f"u{n % _USERS}", f"i{n % 3_000}", "view", now, now, f"e{n}") for n in numbers
    ]


def times(work: Callable[[], object], seconds: float) -> list[float]:
    """Return how long calls took, one after the other, for a number of seconds."""
    found, end = list[float](), time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        work()
        found.append(time.perf_counter() - started)
    return found


def measured(store: Store, seconds: float) -> dict[str, list[float]]:
    """Return the times of one round of everything."""
    known = store.read([Since("u1")])[0]
    new = Since("u1", known.epoch, known.position)
    return {
        "append 1": times(lambda: store.append(batch(1)), seconds),
        "append 100": times(lambda: store.append(batch(100)), seconds),
        "nothing new": times(lambda: store.read([new]), seconds),
        "whole log": times(lambda: store.read([Since("reader")]), seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    seconds = parser.parse_args().seconds / _ROUNDS
    servers.marks = {"redis", "postgresql"}
    load = os.getloadavg()[0]
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT)))
        redis = servers.Redis(folder)
        stack.callback(redis.stop)
        postgresql = stack.enter_context(servers.PostgreSQL(durable=True))
        os.environ["PGPASSWORD"] = postgresql.password
        addresses = f"sqlite:///{folder}/store.db", redis.url, postgresql.address
        stores = {name: open_store(address) for name, address in
                  zip(("SQLite", "Redis", "PostgreSQL"), addresses, strict=True)}  # fmt: skip
        for store in stores.values():
            stack.callback(store.close)
            store.append(
                [StoredEvent("reader", f"i{n}", "view", n, n, f"e{n}") for n in range(_HISTORY)]
            )
            store.append(batch(_USERS))
        for _ in range(_ROUNDS):
            for name, store in stores.items():
                for what, values in measured(store, seconds).items():
                    found.setdefault(name, {}).setdefault(what, []).extend(values)
    record = {
        name: {
            what: {"median_us": 1e6 * median(all_), "fast_us": 1e6 * quantiles(all_, n=10)[0]}
            for what, all_ in values.items()
        }
        for name, values in found.items()
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stores.json").write_text(
        json.dumps({"benchmark": "stores", "load": load, "cores": os.cpu_count(), **record}) + "\n"
    )
    text = table(record) + f"\nLoad average before: {load:.1f} on {os.cpu_count()} cores.\n"
    (RESULTS / "stores.md").write_text(text)
    print(text)


def table(record: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the figures, a line for each store: the median, and below which a tenth was."""
    names = list(next(iter(record.values())))
    lines = [f"| store | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for store, values in record.items():
        cells = (f"{values[n]['median_us']:,.0f} ({values[n]['fast_us']:,.0f}) us" for n in names)
        lines.append(f"| {store} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
