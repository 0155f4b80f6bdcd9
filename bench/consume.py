"""What `distilrec consume` takes over per second, by the size of its batches: from Kafka and from a
Redis stream, into a service and into stores.

    taskset -c 0 python bench/consume.py [--events 20000] [--batches 10 100 500 1000] [--rounds 3]

All messages lie in the source before the clock starts. The source (librdkafka's own mock cluster,
or Redis with `appendfsync always`), the consumer, the service and its store share the cores that
the command is given. Events per second are those of the best round, on the clock; the CPU of the
consumer is that of its thread, without librdkafka's own, the CPU of the service that of its
process; both of the median round. Writes bench/results/consume.{md,json}.
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
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import redis as redis_client  # noqa: E402
from tests import servers, small_run  # noqa: E402
from tests.consume.kafka_cluster import Kafka  # noqa: E402

from distilrec.consume import ConsumeConfig, consume  # noqa: E402
from distilrec.runs.stages import run_all  # noqa: E402

RESULTS = Path(__file__).parent / "results"
_NAMES = (f"bench-{number}" for number in count())
_TICKS = os.sysconf("SC_CLK_TCK")
Fill = Callable[[int], str]


def messages(name: str, number: int) -> list[dict[Any, Any]]:
    """Return events of a thousand users, with ids that no other topic has."""
    now = time.time()
    return [
        {
            "user_id": f"u{n % 1_000}",
            "item_id": f"i{n % 40}",
            "event_type": "view",
            "timestamp": now,
            "event_id": f"{name}-{n}",
        }
        for n in range(number)
    ]


def into_kafka(cluster: Kafka, number: int) -> str:
    """Fill a topic and return its address."""
    name = next(_NAMES)
    address = cluster.topic(name)
    cluster.send(name, [json.dumps(event).encode() for event in messages(name, number)])
    return address


def into_stream(server: servers.Redis, number: int) -> str:
    """Fill a stream and return its address."""
    name, client = next(_NAMES), redis_client.Redis(port=server.port)
    for first in range(0, number, 1_000):
        with client.pipeline() as pipe:
            for event in messages(name, number)[first : first + 1_000]:
                pipe.xadd(name, event)
            pipe.execute()
    client.close()
    return f"redis-stream://127.0.0.1:{server.port}/0/{name}"


def cpu_of(process: int | None) -> float:
    """Return the seconds of CPU of a process so far."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def one_round(
    fill: Fill, to: str, process: int | None, batch: int, number: int, folder: Path
) -> tuple[float, float, float]:
    """Return events per second, and microseconds of CPU per event of consumer and service."""
    config = ConsumeConfig(
        fill(number),
        to,
        batch=batch,
        group=next(_NAMES),
        until_empty=True,
        dead_letters=str(folder / "dead.jsonl"),
        store_prefix=f"{next(_NAMES)}:",
    )
    served, spent, began = cpu_of(process), time.thread_time(), time.time()
    tally = consume(config)
    seconds = tally.last_commit - began
    assert tally.delivered == number and not tally.dead
    per_event = 1e6 / number
    return (
        number / seconds,
        (time.thread_time() - spent) * per_event,
        (cpu_of(process) - served) * per_event,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="in each round")
    parser.add_argument("--batches", type=int, nargs="+", default=[10, 100, 500, 1_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    servers.marks = {"redis", "postgresql", "server"}
    found: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT)))
        small_run.write_tables(folder)
        run_all(small_run.small_config(folder), folder / "run")
        kafka = stack.enter_context(Kafka())
        redis = servers.Redis(folder)
        stack.callback(redis.stop)
        postgresql = stack.enter_context(servers.PostgreSQL(durable=True))
        os.environ["PGPASSWORD"] = postgresql.password
        service = servers.Server(folder / "run/bundle", f"sqlite:///{folder}/service.db")
        stack.callback(service.stop)
        service.wait()
        sources: dict[str, Fill] = {
            "Kafka": lambda number: into_kafka(kafka, number),
            "Redis stream": lambda number: into_stream(redis, number),
        }
        stores = {
            "SQLite": f"sqlite:///{folder}/store.db",
            "Redis": redis.url,
            "PostgreSQL": postgresql.address,
        }
        load = os.getloadavg()[0]
        for _ in range(options.rounds):
            for batch in options.batches:
                number = min(options.events, 200 * batch)
                for source, fill in sources.items():
                    for target, to in {"the service": service.url, **stores}.items():
                        process = service.process.pid if to == service.url else None
                        figures = one_round(fill, to, process, batch, number, folder)
                        found.setdefault((source, target, batch), []).append(figures)
    record = [
        {
            "source": source,
            "to": to,
            "batch": batch,
            "events_per_s": max(each[0] for each in rounds),
            "median_events_per_s": median(each[0] for each in rounds),
            "consumer_us": median(each[1] for each in rounds),
            "service_us": median(each[2] for each in rounds),
        }
        for (source, to, batch), rounds in found.items()
    ]
    cores = len(os.sched_getaffinity(0))
    text = table(record, options.batches)
    text += f"\nLoad average before: {load:.1f} of a machine with {os.cpu_count()} cores, "
    text += f"of which {cores} were used.\n"
    RESULTS.mkdir(exist_ok=True)
    about = {"benchmark": "consume", "load": load, "cores": cores, "rounds": options.rounds}
    (RESULTS / "consume.json").write_text(json.dumps(about | {"figures": record}) + "\n")
    (RESULTS / "consume.md").write_text(text)
    print(text)


def table(record: list[dict[str, object]], batches: list[int]) -> str:
    """Return events per second, and CPU per event, by the size of the batches."""
    lines = [
        f"| from | to | {' | '.join(f'{batch:,}' for batch in batches)} |",
        "|---" * (len(batches) + 2) + "|",
    ]
    rows: dict[tuple[object, object], list[str]] = {}
    for one in record:
        cpu = f"{one['consumer_us']:.0f}"
        if one["service_us"]:
            cpu += f" + {one['service_us']:.0f}"
        cell = f"{one['events_per_s']:,.0f}/s ({cpu} us)"
        rows.setdefault((one["source"], one["to"]), []).append(cell)
    lines += [f"| {source} | {to} | {' | '.join(row)} |" for (source, to), row in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
