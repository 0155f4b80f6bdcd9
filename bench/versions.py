"""What a request costs by two versions of the code, side by side.

    git worktree add ../before COMMIT
    python bench/versions.py --before ../before [--blocks 60]

One synthetic bundle of the size of MovieLens 1M (3,883 items, 6,040 users, d = 32), which both
versions must be able to read. Both are loaded and then asked in turns, a block of requests each,
on the last core: the engine (the median time of 1,000 calls), and the service (CPU time of the
server for each of 200 requests over one connection). The ratio is the median over the pairs of
blocks, so that what disturbs the machine for longer than a moment disturbs both; its interval is
that of the median (95%, by order statistics). Prints a table and one JSON line, and writes both
into `bench/results/`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "versions"
ITEMS, USERS = 3_883, 6_040
CALLS, REQUESTS = 1_000, 200
WAIT = 600  # seconds until a service answers
POSTS = {
    "/v1/recommend": '{"user_id":"user-%d"}',
    "/v1/events": '{"events":[{"user_id":"user-%d","item_id":"item-7"}]}',
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument(
        "--prefix", default="", help="of the measured processes, such as 'chrt -f 50'"
    )
    parser.add_argument("--child", type=Path, help="a bundle; used by the script itself")
    arguments = parser.parse_args()
    if arguments.child:
        answer_blocks(arguments.child)
        return
    from synthetic import synthetic_bundle

    bundle = synthetic_bundle(RUNS / "bundle", ITEMS, USERS)
    trees = {"before": arguments.before.resolve(), "now": HERE.parent}
    prefix = [*arguments.prefix.split(), "taskset", "-c", str((os.cpu_count() or 1) - 1)]
    blocks: dict[str, list[tuple[float, float]]] = {}
    for kind in (Engine, Service):
        with ExitStack() as stack:
            before, now = (
                stack.enter_context(closing(kind(tree, bundle, prefix))) for tree in trees.values()
            )
            for what in kind.WHAT:
                before.block(what), now.block(what)
                blocks[what] = [
                    pair_of(before, now, what, number) for number in range(arguments.blocks)
                ]
    rows = [row_of(what, np.array(pairs)) for what, pairs in blocks.items()]
    lines = ["| what | before | now | ratio | interval |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['what']} | {row['before_us']:,.1f} us | {row['now_us']:,.1f} us | "
        f"{row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} |"
        for row in rows
    ]
    line = json.dumps({"bench": "versions", "blocks": arguments.blocks, "rows": rows})
    print("\n".join(lines) + "\n\n" + line)
    (RESULTS / "versions.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "versions.json").write_text(line + "\n")


def pair_of(before: Engine | Service, now: Engine | Service, what: str, number: int) -> Any:
    """Return the microseconds of both versions in one turn; which is first changes each time."""
    if number % 2:
        second = now.block(what)
        return before.block(what), second
    return before.block(what), now.block(what)


def row_of(what: str, pairs: NDArray[np.float64]) -> dict[str, Any]:
    """Return medians and their ratio. pairs: (blocks, 2)."""
    ratios = np.sort(pairs[:, 1] / pairs[:, 0])
    half = 0.98 * np.sqrt(len(ratios))
    low, high = int(len(ratios) / 2 - half), int(np.ceil(len(ratios) / 2 + half))
    before, now = np.median(pairs, axis=0)
    return {
        "what": what,
        "before_us": float(before),
        "now_us": float(now),
        "ratio": float(np.median(ratios)),
        "low": float(ratios[max(low, 0)]),
        "high": float(ratios[min(high, len(ratios) - 1)]),
    }


def environment(tree: Path) -> dict[str, str]:
    """Return the environment of a process that imports the code of this tree."""
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "NUMBA_CACHE_DIR": str(RUNS / tree.name)}


class Engine:
    """A process that answers in blocks of calls."""

    WHAT = ("`recommend`, k = 10", "rank 10 given items", "`update` by one event")

    def __init__(self, tree: Path, bundle: Path, prefix: list[str]) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(HERE / "versions.py"), "--child", str(bundle)],
            env=environment(tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def block(self, what: str) -> float:
        """Return the median microseconds of a block of calls."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def answer_blocks(bundle: Path) -> None:
    """Answer each kind of call on standard input with the median microseconds of a block."""
    import distilrec

    recommender = distilrec.load(bundle)
    users = [f"user-{n}" for n in range(USERS)]
    ten = [f"item-{n}" for n in range(10)]
    calls = dict(
        zip(
            Engine.WHAT,
            (
                recommender.recommend,
                lambda user: recommender.recommend(user, ten),
                lambda user: recommender.update([{"user_id": user, "item_id": ten[3]}]),
            ),
            strict=True,
        )
    )
    for user in users:
        recommender.recommend(user)
    taken, number = np.empty(CALLS), 0
    for what in sys.stdin:
        call = calls[what.strip()]
        for n in range(CALLS):
            user = users[(number + n) % USERS]
            began = time.perf_counter_ns()
            call(user)
            taken[n] = time.perf_counter_ns() - began
        number += CALLS
        print(float(np.median(taken)) / 1e3, flush=True)


class Service:
    """A server that is asked in blocks of requests."""

    WHAT = tuple(f"POST {path}, CPU" for path in POSTS)

    def __init__(self, tree: Path, bundle: Path, prefix: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=RUNS)
        log = Path(self._folder.name) / "log"
        command = [*prefix, sys.executable, "-m", "distilrec.cli", "serve", "--bundle", str(bundle)]
        command += ["--store", f"sqlite:///{self._folder.name}/store.db", "--port", "0"]
        with log.open("wb") as output:
            self._server = subprocess.Popen(
                command, env=environment(tree), stdout=output, stderr=output
            )
        self._client = http.client.HTTPConnection(
            "127.0.0.1", port_of(log, self._server), timeout=WAIT
        )
        self._asked = 0

    def block(self, what: str) -> float:
        """Return the CPU microseconds of the server for one request."""
        path = what.split()[1].rstrip(",")
        before = cpu_seconds(self._server.pid)
        for _ in range(REQUESTS):
            body = POSTS[path] % (self._asked % USERS)
            self._client.request("POST", path, body, {"content-type": "application/json"})
            answer = self._client.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{path}: {answer.status} {content!r}")
            self._asked += 1
        return (cpu_seconds(self._server.pid) - before) / REQUESTS * 1e6

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(WAIT)
        self._folder.cleanup()


def port_of(log: Path, server: subprocess.Popen[bytes]) -> int:
    """Return the port that a service says it listens at."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(
            r"(?:running on|listening).*?https?://[^\s\"]*:(\d+)", log.read_text()
        ):
            return int(found[1])
        time.sleep(0.2)
    raise SystemExit(log.read_text())


def cpu_seconds(process: int) -> float:
    """Return the CPU time that all threads of a process have had, to the nanosecond."""
    return (
        sum(
            int((thread / "schedstat").read_text().split()[0])
            for thread in Path(f"/proc/{process}/task").iterdir()
        )
        / 1e9
    )


if __name__ == "__main__":
    main()
