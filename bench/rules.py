"""What ids of answers, outcomes and rules cost, side by side in one process.

    python bench/rules.py [--bundle runs/bench/ml-1m-32/bundle] [--blocks 60]

The parts of a service without HTTP (`distilrec.serve.service`) over an SQLite store of their own
each, on one event loop, all users in memory. Each row answers blocks of requests of the same users
in turn with the others; a ratio is the median over the blocks of the block's median time and that
of the first row, which has no outcomes and no rules, so that what disturbs the machine for longer
than a moment disturbs all rows. The rules are read from a file. Prints a table and one JSON line,
and writes both into `bench/results/`. Run it as `nice -n -5 taskset -c 0 python bench/rules.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from bundles import ml_1m_bundle  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from distilrec.serve.config import ServiceConfig  # noqa: E402
from distilrec.serve.schemas import LoadRulesRequest, RecommendRequest  # noqa: E402
from distilrec.serve.service import Service, open_service  # noqa: E402

RESULTS = Path(__file__).parent / "results"
CALLS = 200  # in a block
TARGET = 1.10
WITHOUT, OUTCOMES = "without outcomes and rules", "ids and outcomes"
ELSEWHERE = "ids and outcomes, rules of another placement"
RULES = """
[placements.pin]
pin = [{{ item_id = "{pinned}", slot = 3 }}]

[placements.boost]
boost = [{{ weight = 1.5, where = {drama} }}]

[placements.limit]
limit = [{{ attribute = "genres", at_most = 3 }}]

[placements.home]
pin = [{{ item_id = "{pinned}", slot = 3 }}]
boost = [{{ weight = 1.5, where = {drama} }}]
limit = [{{ attribute = "genres", at_most = 3 }}]
"""
DRAMA = '{ attributes = { genres = { any_of = ["Drama"] } } }'


class Row(NamedTuple):
    """outcomes: whether answers have ids; rules: whether rules are in force; placement: of the
    requests.
    """

    outcomes: bool
    rules: bool
    placement: str | None


ROWS = {
    WITHOUT: Row(False, False, None),
    OUTCOMES: Row(True, False, None),
    ELSEWHERE: Row(True, True, "cart"),
    "a pin": Row(True, True, "pin"),
    "a boost by condition": Row(True, True, "boost"),
    "at most 3 of a category": Row(True, True, "limit"),
    "pin, boost and limit": Row(True, True, "home"),
}


@asynccontextmanager
async def running(bundle: Path, folder: Path, *, outcomes: bool, rules: bool) -> Iterator[Service]:
    """Yield a service with the rules of a file, or none."""
    name = f"{'with' if outcomes else 'no'}-{'rules' if rules else 'plain'}"
    service = open_service(
        ServiceConfig(
            str(bundle),
            store=f"sqlite:///{folder / name}.db",
            bundle_root=str(folder),
            outcomes=outcomes,
        )
    )
    await service.start()
    if rules:
        pinned = service.models.active.recommender.item_ids[100]
        (folder / "rules.toml").write_text(RULES.format(pinned=pinned, drama=DRAMA))
        response = await service.rules.load(LoadRulesRequest(file="rules.toml"))
        assert not response.problems, response.problems
    yield service
    await service.stop()


@contextmanager
def steady() -> Iterator[None]:
    """Keep the garbage collector out of the figures, as the service does after its start."""
    import gc

    gc.collect()
    gc.freeze()
    yield


async def block(service: Service, requests: list[RecommendRequest]) -> float:
    """Return the median microseconds of some answers."""
    recommend, taken = service.answers.recommend, np.empty(len(requests))
    for number, request in enumerate(requests):
        began = time.perf_counter_ns()
        await recommend(request)
        taken[number] = time.perf_counter_ns() - began
    return float(np.median(taken)) / 1e3


async def measured(bundle: Path, folder: Path, blocks: int) -> dict[str, NDArray[np.float64]]:
    """Return the microseconds of each row, (blocks,)."""
    found: dict[str, NDArray[np.float64]] = {name: np.empty(blocks) for name in ROWS}
    kinds = sorted({(row.outcomes, row.rules) for row in ROWS.values()})
    services: dict[tuple[bool, bool], Service] = {}
    async with (
        running(bundle, folder, outcomes=kinds[0][0], rules=kinds[0][1]) as first,
        running(bundle, folder, outcomes=kinds[1][0], rules=kinds[1][1]) as second,
        running(bundle, folder, outcomes=kinds[2][0], rules=kinds[2][1]) as third,
    ):
        services = dict(zip(kinds, (first, second, third), strict=True))
        users = first.models.active.recommender.some_users(6_040)
        for service in services.values():
            for user in users:
                service.models.active.recommender.recommend(user)
        with steady():
            for number in range(-1, blocks):  # the first one warms up
                some = [users[(number * CALLS + n) % len(users)] for n in range(CALLS)]
                for name, row in ROWS.items():
                    requests = [RecommendRequest(user, placement=row.placement) for user in some]
                    taken = await block(services[row.outcomes, row.rules], requests)
                    found[name][max(number, 0)] = taken
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--blocks", type=int, default=60)
    arguments = parser.parse_args()
    bundle = arguments.bundle or ml_1m_bundle(32)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measured(bundle.resolve(), Path(folder), arguments.blocks))
    rows = [
        {
            "what": name,
            "us": float(np.median(taken)),
            "ratio": float(np.median(ratios := taken / found[WITHOUT])),
            "quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
        }
        for name, taken in found.items()
    ]
    header = "| an answer of the service, without HTTP | p50 | ratio | quartiles |"
    lines = [header, "|---|---|---|---|"]
    lines += [
        f"| {row['what']} | {row['us']:.1f} us | {row['ratio']:.2f} | "
        f"{row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f} |"
        for row in rows
    ]
    met = all(row["ratio"] <= TARGET for row in rows if row["what"] in {OUTCOMES, ELSEWHERE})
    lines += [
        "",
        f"Target: ids and outcomes, and rules elsewhere, <= {TARGET:g}: "
        f"{'met' if met else 'missed'}.",
    ]
    line = json.dumps({"bench": "rules", "blocks": arguments.blocks, "rows": rows, "met": met})
    print("\n".join(lines) + "\n\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rules.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "rules.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
