"""Several services on one store, as nodes of a cluster: events acknowledged per second, the times
of answers, and what a node that is killed loses.

    python bench/nodes.py [--nodes 1 3] [--seconds 20] [--connections 16]

Each node is `distilrec serve` with one worker, a port of its own and the bundle of the tests' small
run, so that what is measured is HTTP and the store. The client, threads of this process, goes to
the next node with every request: an event, then an answer for the same user. Redis with
`appendfsync always` and PostgreSQL with `fsync = on` are on this machine too, whose cores all of
them share: the figures show what sharing a store costs, not what more machines bring. Of several
nodes, one is then killed (-9) under load. Writes bench/results/nodes.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import servers, small_run  # noqa: E402
from tests.nodes import Alternating, stored  # noqa: E402

from distilrec.runs.stages import run_all  # noqa: E402
from distilrec.stores.opening import open_store  # noqa: E402

RESULTS = Path(__file__).parent / "results"
_USERS = 1_000


@dataclass(frozen=True)
class Setting:
    """bundle: what is served; folder: for logs; connections: threads of the client; seconds: of
    each phase.
    """

    bundle: Path
    folder: Path
    connections: int
    seconds: float


def phase(load: Alternating, seconds: float) -> dict[str, float]:
    """Return the figures of some seconds of a load."""
    before = {kind: len(times) for kind, times in load.times.items()}
    began, retried = time.perf_counter(), load.retried
    time.sleep(seconds)
    spent = time.perf_counter() - began
    times = {kind: found[before[kind] :] for kind, found in load.times.items()}
    figures = {
        "events_per_s": len(times["events"]) / spent,
        "retried": load.retried - retried,
    }
    for kind, found in times.items():
        cuts = quantiles(found, n=100)
        figures |= {f"{kind}_p50_ms": 1e3 * cuts[49], f"{kind}_p99_ms": 1e3 * cuts[98]}
    return figures


def measured(address: str, nodes: int, setting: Setting) -> dict[str, dict[str, float]]:
    """Return the figures of a number of nodes on a store with keys or tables of their own."""
    prefix = f"nodes{nodes}:"
    options = "--store-prefix", prefix
    services = [
        servers.Server(setting.bundle, address, *options, log_folder=setting.folder, wait=False)
        for _ in range(nodes)
    ]
    for service in services:
        service.wait()
    found = {}
    with Alternating([s.url for s in services], setting.connections, _USERS) as load:
        phase(load, setting.seconds / 4)  # until all is warm
        found[f"{nodes}"] = phase(load, setting.seconds)
        if nodes > 1:
            services.pop().kill()
            found[f"{nodes}, one killed"] = phase(load, setting.seconds)
    store = open_store(address, prefix)
    there = stored(store, [load.user(number) for number in range(_USERS)])
    store.close()
    acknowledged = set(load.acknowledged)
    for figures in found.values():
        figures["acknowledged"] = len(acknowledged)
        figures["lost"] = len(acknowledged - set(there))
        figures["doubled"] = sum(times > 1 for times in there.values())
        figures["refused"] = load.refused.total()
    for service in services:
        assert service.stop() == 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    servers.marks = {"redis", "postgresql", "server"}
    record: dict[str, dict[str, dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT)))
        small_run.write_tables(folder)
        run_all(small_run.small_config(folder), folder / "run")
        setting = Setting(folder / "run/bundle", folder, options.connections, options.seconds)
        redis = servers.Redis(folder)
        stack.callback(redis.stop)
        postgresql = stack.enter_context(servers.PostgreSQL(durable=True))
        os.environ["PGPASSWORD"] = postgresql.password
        load = os.getloadavg()[0]
        for name, address in (("Redis", redis.url), ("PostgreSQL", postgresql.address)):
            for nodes in options.nodes:
                record.setdefault(name, {}).update(measured(address, nodes, setting))
    about = {
        "benchmark": "nodes",
        "connections": options.connections,
        "seconds": options.seconds,
        "load": load,
        "cores": len(os.sched_getaffinity(0)),
    }
    text = table(record)
    text += f"\nLoad average before: {load:.1f} on {about['cores']} cores.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "nodes.json").write_text(json.dumps(about | record) + "\n")
    (RESULTS / "nodes.md").write_text(text)
    print(text)


def table(record: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the figures, a line for each store and number of nodes."""
    lines = [
        "| store | nodes | events/s | event p50, p99 | answer p50, p99 | sent again | "
        "acknowledged | lost | doubled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for store, rows in record.items():
        for nodes, one in rows.items():
            lines.append(
                f"| {store} | {nodes} | {one['events_per_s']:,.0f} "
                f"| {one['events_p50_ms']:.1f}, {one['events_p99_ms']:.1f} ms "
                f"| {one['recommend_p50_ms']:.1f}, {one['recommend_p99_ms']:.1f} ms "
                f"| {one['retried']:,} | {one['acknowledged']:,} | {one['lost']} "
                f"| {one['doubled']} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
