"""The service under load: throughput beside an empty handler, durable events, kill -9, hot swap, a
long soak.

    python bench/service.py [--only start,http,events,kill,swap,soak] [--soak-requests 1000000]

The service runs from an installation of its own without training packages (.venv-service, made on
first use), pinned to one core; the load comes from `wrk` (Debian package) on the other. Bundles of
the size of MovieLens 1M (`bench/bundles.py`). Prints a table and one JSON line; writes
bench/results/service.{md,json}.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
from bundles import ml_1m_bundle  # noqa: E402
from tests import servers  # noqa: E402
from tests.serve.test_faults import Load, stored_ids  # noqa: E402
from tests.servers import Server  # noqa: E402

RESULTS = Path(__file__).parent / "results"
VENV = ROOT / ".venv-service"
CONNECTIONS, USERS = 32, 6_040
_SERVER, _CLIENT = (
    (["taskset", "-c", "0"], ["taskset", "-c", "1"]) if (os.cpu_count() or 1) > 1 else ([], [])
)

# Fixed ports: the servers run at the same time.
_PORT = 8431
# An empty handler behind the connections of uvicorn, and one behind those of the service
_EMPTY_PORTS = {"uvicorn": 8432, "ours": 8433}
_ROUNDS = 15

RECOMMEND = """
wrk.method = "POST"; wrk.headers["content-type"] = "application/json"
local n = 0
request = function()
  n = n + 1
  return wrk.format(nil, "/v1/recommend", nil, '{"user_id":"' .. (n % 6040 + 1) .. '"}')
end
"""
EVENTS = """
wrk.method = "POST"; wrk.headers["content-type"] = "application/json"
local n = 0
request = function()
  n = n + 1
  return wrk.format(nil, "/v1/events", nil,
    '{"events":[{"user_id":"' .. (n % 6040 + 1)
    .. '","item_id":"Toy Story (1995)","event_id":"RUN' .. n .. '"}]}')
end
"""
MIXED = """
wrk.method = "POST"; wrk.headers["content-type"] = "application/json"
local n = 0
request = function()
  n = n + 1
  local user = (n * 7919) % 6040 + 1
  if n % 10 == 0 then
    return wrk.format(nil, "/v1/events", nil,
      '{"events":[{"user_id":"' .. user .. '","item_id":"Toy Story (1995)"}]}')
  end
  return wrk.format(nil, "/v1/recommend", nil, '{"user_id":"' .. user .. '"}')
end
"""
EMPTY = """
import sys
import msgspec, uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from distilrec.serve.config import ServiceConfig
from distilrec.serve.schemas import RankedItem, RecommendRequest, RecommendResponse
from distilrec.serve.server import _options, settle

decode, encode = msgspec.json.Decoder(RecommendRequest).decode, msgspec.json.Encoder().encode
items = [RankedItem("Lion King, The (1994)", 1.234567 + n, n) for n in range(10)]
canned = RecommendResponse("1", True, "0123456789abcdef", items)

async def recommend(request: Request) -> Response:
    decode(await request.body())
    return Response(encode(canned), media_type="application/json")

app = Starlette(routes=[Route("/v1/recommend", recommend, methods=["POST"])])
settle()
options = _options(ServiceConfig("x", port=int(sys.argv[1]))) | {"lifespan": "off"}
uvicorn.run(app, **(options if sys.argv[2] == "ours" else options | {"http": "httptools"}))
"""


def installed() -> Path:
    """Return the python of an installation without training packages."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{ROOT}[redis]"],
        check=True,
    )
    return python


def serve(
    python: Path, bundle: Path, folder: Path, *options: object, name: str = "store"
) -> Server:
    """Run a service on one core."""
    return Server(
        bundle,
        f"sqlite:///{folder / name}.db",
        *options,
        port=_PORT,
        python=[*_SERVER, str(python)],
        log_folder=folder,
    )


def wrk(
    url: str, script: str, seconds: float, folder: Path, connections: int = CONNECTIONS
) -> dict[str, float]:
    """Return requests per second, 99th percentile in ms, answers other than 2xx, all requests."""
    (folder / "load.lua").write_text(script)
    run = subprocess.run(
        [*_CLIENT, "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency",
         "--timeout", "10s", "-s", folder / "load.lua", url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", run.stdout).groups()  # type: ignore[union-attr]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", run.stdout)
    sockets = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", run.stdout
    )
    return {
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", run.stdout)[1]),  # type: ignore[index]
        "p99_ms": float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit],
        "failed": float(failed[1] if failed else 0)
        + sum(map(int, sockets.groups() if sockets else ())),
        "requests": float(re.search(r"(\d+) requests in", run.stdout)[1]),  # type: ignore[index]
    }


def rss_mib(server: Server) -> float:
    """Resident memory of the serving process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def ask_everybody(server: Server) -> None:
    for start in range(1, USERS + 1, 500):
        requests = [{"user_id": str(user)} for user in range(start, min(start + 500, USERS + 1))]
        server.post("/v1/recommend/batch", requests=requests)


def bench_start(python: Path, folder: Path) -> dict[str, object]:
    """From the start of the process to its first answer, three times; memory with all users."""
    times = []
    for number in range(3):
        port = _PORT
        started = time.perf_counter()
        server = Server(
            ml_1m_bundle(32), f"sqlite:///{folder}/start-{number}.db", port=port, wait=False,
            python=[str(python)], log_folder=folder,
        )  # fmt: skip
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request(
                    "POST",
                    "/v1/recommend",
                    b'{"user_id": "1"}',
                    {"content-type": "application/json"},
                )
                assert len(json.load(connection.getresponse())["items"]) == 10
                break
            except ConnectionRefusedError:
                time.sleep(0.002)
        times.append(time.perf_counter() - started)
        connection.close()
        ask_everybody(server)
        memory = rss_mib(server)
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        heavy = sorted({name for name in ("torch", "polars", "pandas") if name in mapped})
        server.stop()
    return {
        "first_answer_s": sorted(times),
        "rss_mib_all_users": memory,
        "training_packages_loaded": heavy,
    }


def bench_http(python: Path, folder: Path) -> dict[str, object]:
    """Recommendations and two empty handlers in turns, on the same core."""
    (folder / "empty.py").write_text(EMPTY)
    empty = {
        protocol: subprocess.Popen(
            [*_SERVER, str(python), str(folder / "empty.py"), str(port), protocol], cwd=folder
        )
        for protocol, port in _EMPTY_PORTS.items()
    }
    found: dict[str, object] = {}
    for dim in (32, 64):
        server = serve(python, ml_1m_bundle(dim), folder, name=f"http-{dim}")
        ask_everybody(server)
        wrk(server.url, RECOMMEND, 3, folder)
        urls = {protocol: f"http://127.0.0.1:{port}" for protocol, port in _EMPTY_PORTS.items()}
        turns = []
        for _ in range(_ROUNDS):  # short turns: what else the machine does falls on all alike
            turn = {
                name: wrk(url, RECOMMEND, 2, folder)
                for name, url in (urls | {"": server.url}).items()
            }
            assert not any(one["failed"] for one in turn.values())
            turns.append(turn)
        server.stop()
        found[f"dim {dim}"] = {
            "rps": median(turn[""]["rps"] for turn in turns),
            "p99_ms": median(turn[""]["p99_ms"] for turn in turns),
            "worst_p99_ms": max(turn[""]["p99_ms"] for turn in turns),
        }
        for protocol in _EMPTY_PORTS:
            ratios = [turn[""]["rps"] / turn[protocol]["rps"] for turn in turns]
            lower, middle, upper = quantiles(ratios, n=4)
            found[f"dim {dim}, beside an empty handler, connections of {protocol}"] = {
                "rps": median(turn[protocol]["rps"] for turn in turns),
                "ratio": middle,
                "lower_quartile": lower,
                "upper_quartile": upper,
            }
    for process in empty.values():
        process.terminate()
        process.wait()
    return found


def bench_events(python: Path, folder: Path) -> dict[str, object]:
    """One event per request, each durable before it is acknowledged; a reader checks its own writes
    meanwhile.
    """
    server = serve(python, ml_1m_bundle(32), folder, name="events")
    checked, behind = 0, 0
    stop = threading.Event()

    def check() -> None:
        nonlocal checked, behind
        with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client:
            for number in count():
                if stop.is_set():
                    return
                user = f"checker-{number % 20}"
                best = client.post("/v1/recommend", json={"user_id": user}).json()["items"][0][
                    "item_id"
                ]
                event = {"user_id": user, "item_id": best}
                assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
                after = client.post("/v1/recommend", json={"user_id": user, "k": 50}).json()[
                    "items"
                ]
                checked += 1
                behind += best in {item["item_id"] for item in after}

    thread = threading.Thread(target=check)
    thread.start()
    rounds = [wrk(server.url, EVENTS.replace("RUN", f"{n}-"), 6, folder, 64) for n in range(3)]
    stop.set()
    thread.join()
    metrics = server.client.get("/metrics").text
    commits = float(re.search(r"distilrec_commit_events_count ([\d.e+]+)", metrics)[1])  # type: ignore[index]
    events = float(re.search(r"distilrec_commit_events_sum ([\d.e+]+)", metrics)[1])  # type: ignore[index]
    server.stop()
    stored = len(stored_ids(folder / "events.db"))
    return {
        "events_per_s": sorted(result["rps"] for result in rounds)[1],
        "p99_ms": sorted(result["p99_ms"] for result in rounds)[1],
        "failed": sum(result["failed"] for result in rounds),
        "events_per_commit": events / commits,
        "stored": stored,
        "accepted": events,
        "read_your_writes_checked": checked,
        "read_your_writes_broken": behind,
    }


def bench_kill(python: Path, folder: Path, times: int = 20) -> dict[str, object]:
    """Kill -9 under load; afterwards every acknowledged event is there, once."""
    acknowledged: list[str] = []
    for number in range(times):
        server = serve(python, ml_1m_bundle(32), folder, name="kill")
        with Load(server, patient=True, first=number * 10_000_000) as load:
            time.sleep(0.3 + 0.02 * number)
            server.kill()
        acknowledged += load.acknowledged
    stored = stored_ids(folder / "kill.db")
    return {
        "kills": times,
        "acknowledged": len(acknowledged),
        "lost": len(set(acknowledged) - set(stored)),
        "duplicated": len(stored) - len(set(stored)),
    }


def bench_swap(python: Path, folder: Path) -> dict[str, object]:
    """Six swaps between two models, and back, under full load."""
    root = folder / "bundles"
    for dim in (32, 64):
        shutil.copytree(ml_1m_bundle(dim), root / str(dim))
    server = serve(python, root / "32", folder, name="swap")
    ask_everybody(server)
    result: dict[str, float] = {}
    load = threading.Thread(target=lambda: result.update(wrk(server.url, RECOMMEND, 14, folder)))
    load.start()
    time.sleep(1)
    reports = [
        server.post("/v1/model/load", bundle=str(dim), shadow_requests=300) for dim in (64, 32, 64)
    ]
    for _ in range(3):
        time.sleep(0.5)
        reports.append(server.post("/v1/model/rollback"))
    load.join()
    server.stop()
    return {
        "swaps": len(reports),
        "requests": result["requests"],
        "failed": result["failed"],
        "p99_ms": result["p99_ms"],
        "shadow": reports[0]["shadow"],
    }


def bench_soak(python: Path, folder: Path, requests: int) -> dict[str, object]:
    """Nine recommendations to one event, fewer users in memory than there are; memory before and
    after.
    """
    server = serve(python, ml_1m_bundle(32), folder, "--max-users", 3_000, name="soak")
    ask_everybody(server)
    done = failed = wrk(server.url, MIXED, 10, folder)["failed"]
    memory = [rss_mib(server)]
    while done < requests:
        part = wrk(server.url, MIXED, 10, folder)
        done += part["requests"]
        failed += part["failed"]
        memory.append(rss_mib(server))
    server.stop()
    return {
        "requests": done, "failed": failed, "rss_mib": [round(mib, 1) for mib in memory],
        "growth": memory[-1] / memory[0] - 1, "largest": max(memory) / memory[0] - 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="start,http,events,kill,swap,soak")
    parser.add_argument("--soak-requests", type=int, default=1_000_000)
    arguments = parser.parse_args()
    servers.marks = {"server"}  # what tests say to start one
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    for dim in (32, 64):
        ml_1m_bundle(dim)
    python = installed()
    subprocess.run(
        [python, "-m", "distilrec.cli", "recommend", "--bundle", ml_1m_bundle(32),
         "--user-id", "1"],
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    path = RESULTS / "service.json"
    record: dict[str, object] = (
        json.loads(path.read_text()) if path.exists() else {"benchmark": "service"}
    )
    for name in arguments.only.split(","):
        with tempfile.TemporaryDirectory(
            prefix="distilrec-bench-", dir=ROOT / "runs" / "bench"
        ) as temporary:
            folder = Path(temporary)
            match name:
                case "start":
                    record[name] = bench_start(python, folder)
                case "http":
                    record[name] = bench_http(python, folder)
                case "events":
                    record[name] = bench_events(python, folder)
                case "kill":
                    record[name] = bench_kill(python, folder)
                case "swap":
                    record[name] = bench_swap(python, folder)
                case "soak":
                    record[name] = bench_soak(python, folder, arguments.soak_requests)
        print(name, json.dumps(record[name]), flush=True)
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(record) + "\n")
        (RESULTS / "service.md").write_text(table(record))
    print(table(record))
    print(json.dumps(record))


def table(record: dict[str, object]) -> str:
    """Return the figures, one line each."""
    lines = ["| what | figure | value |", "|---|---|---|"]
    for name, figures in record.items():
        if isinstance(figures, dict):
            for figure, value in figures.items():
                lines.append(f"| {name} | {figure.replace('_', ' ')} | {_shown(value)} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in value) or "none"
    return str(value)


if __name__ == "__main__":
    main()
