"""Time of the web engine in Node and in Chromium, beside the compiled engine in Python.

    python bench/bundles.py --dim 32 && taskset -c 0 python bench/web_speed.py

A student of the size of MovieLens 1M (`bench/bundles.py`, 32 numbers) and the histories of 300 of
its users, each of whom is asked for in turn, 3,000 times after 500 calls that are not counted. A
cold load is from the import of the package to the first answer, in a process or page that has
loaded nothing before: the median of ten; in Chromium also with the file fetched beside the package,
as a page with <link rel="preload"> does it. Chromium gets its files from a server on this machine,
with headers that give the page a fine clock. Prints a table, the load of the machine and one JSON
line, and writes them into bench/results/. Other work makes the times longer; at a real-time
priority (chrt) the driver of Chromium starves it.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from bundles import ml_1m_bundle  # noqa: E402
from engine import percentiles  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402

import distilrec  # noqa: E402
from distilrec.bundle.format import Bundle, read_bundle  # noqa: E402
from distilrec.engine.web import write_drec  # noqa: E402

HERE = Path(__file__).resolve().parent
CODE, SCRIPT = HERE.parent / "web" / "dist" / "distilrec.js", HERE / "web_speed.mjs"
USERS, CALLS, COLD = 300, 3_000, 10
TARGETS = {"Node": 150.0, "Chromium": 300.0}  # us, p50 of `recommend`
TARGET_COLD = 150.0  # ms
NUMBA, WASM = "recommend, numba", "recommend, WebAssembly"
Rows = dict[str, dict[str, float]]


class Host(SimpleHTTPRequestHandler):
    """A static host whose pages may read a fine clock."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def histories(bundle: Bundle) -> list[list[str]]:
    """Return the item ids of the first users, oldest first."""
    history, ids = bundle.history, bundle.catalogue.ids
    if history is None:
        raise SystemExit("the bundle has no histories")
    return [
        [ids[item] for item in history.items[history.offsets[n] : history.offsets[n + 1]]]
        for n in range(USERS)
    ]


def in_python(file: Path, users: list[list[str]]) -> Rows:
    recommender = distilrec.load(file)
    for user, items in enumerate(users):
        recommender.update([{"user_id": user, "item_id": item} for item in items])
    p50, p99 = percentiles(recommender.recommend, [str(n) for n in range(USERS)], CALLS)
    return {NUMBA: {"p50_us": p50, "p99_us": p99}}


def in_node(file: Path, users: Path) -> tuple[Rows, float]:
    def node(*arguments: Path) -> Any:
        command = ["node", str(SCRIPT), str(file), *map(str, arguments)]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    return node(users), float(np.median([node() for _ in range(COLD)]))


def in_chromium(browser: Browser, address: str) -> tuple[Rows, float, float]:
    def evaluated(body: str) -> Any:
        page = browser.new_context().new_page()
        page.goto(f"{address}/index.html")
        found = page.evaluate(
            """async () => {
              if (!crossOriginIsolated) throw new Error("the clock is coarse");
              const { cold, measured } = await import("./web_speed.mjs");
              const source = async () => (await fetch("student.drec")).arrayBuffer();
              const code = new URL("distilrec.js", location).href;
              """
            + body
            + "}"
        )
        page.context.close()
        return found

    # By turns, so that other work disturbs both alike
    cold = [
        [evaluated(f"return cold(code, source, {beside});") for beside in ("false", "true")]
        for _ in range(COLD)
    ]
    users = "await (await fetch('users.json')).json()"
    after, beside = np.median(cold, axis=0)
    return evaluated(f"return measured(code, source, {users});"), float(after), float(beside)


def measure() -> dict[str, Any]:
    bundle = read_bundle(ml_1m_bundle(32))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = folder / "student.drec"
        write_drec(bundle, file)
        users = histories(bundle)
        (folder / "users.json").write_text(json.dumps(users))
        (folder / "index.html").write_text("<!doctype html><title>A page</title>")
        for path in (CODE, SCRIPT):
            shutil.copy(path, folder)
        times = {"Python": in_python(file, users)}
        cold = {}
        times["Node"], cold["Node"] = in_node(file, folder / "users.json")
        with (
            ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=place)) as server,
            sync_playwright() as playwright,
        ):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            address = f"http://127.0.0.1:{server.server_port}"
            times["Chromium"], cold["Chromium"], beside = in_chromium(browser, address)
            version = browser.version
            browser.close()
            server.shutdown()
        code = CODE.read_bytes()
        return {
            "bench": "web_speed",
            "times": times,
            "cold_ms": cold,
            "cold_beside_ms": beside,
            "load": os.getloadavg()[1],
            "file_bytes": file.stat().st_size,
            "code_bytes": len(code),
            "code_compressed_bytes": len(gzip.compress(code)),
            "events_per_user": float(np.mean([len(items) for items in users])),
            "items": bundle.manifest.items,
            "chromium": version,
            "node": subprocess.check_output(["node", "--version"], text=True).strip(),
        }


def table(record: dict[str, Any]) -> str:
    first = record["times"]["Python"][NUMBA]["p50_us"]
    lines = ["| where | what | p50 | p99 | p50 / numba |", "|---|---|---|---|---|"]
    for where, rows in record["times"].items():
        for what, row in rows.items():
            ratio = f"{row['p50_us'] / first:.2f}" if what.startswith("recommend") else ""
            p50 = f"{row['p50_us']:,.1f} us" if row["p50_us"] else "below the clock"
            lines.append(f"| {where} | {what} | {p50} | {row['p99_us']:,.1f} us | {ratio} |")
    lines.append("")
    for where, cold in record["cold_ms"].items():
        p50 = record["times"][where][WASM]["p50_us"]
        lines += [
            f"{where}: recommend p50 {p50:,.1f} us, target {TARGETS[where]:g} us: "
            f"{'met' if p50 < TARGETS[where] else 'missed'}; first answer {cold:.1f} ms after the "
            f"import began, target {TARGET_COLD:g} ms: "
            f"{'met' if cold < TARGET_COLD else 'missed'}.",
            "",
        ]
    beside = record["cold_beside_ms"]
    lines += [
        f"Chromium, the file fetched beside the package: {beside:.1f} ms: "
        f"{'met' if beside < TARGET_COLD else 'missed'}.",
        "",
        f"Load of the machine, mean of five minutes: {record['load']:.1f}.",
        "",
    ]
    lines.append(
        f"student.drec {record['file_bytes']:,} bytes, {record['items']:,} items; package "
        f"{record['code_bytes']:,} bytes, {record['code_compressed_bytes']:,} compressed."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    record = measure()
    text, line = table(record), json.dumps(record)
    print(f"{text}\n{line}")
    (HERE / "results" / "web_speed.md").write_text(text)
    (HERE / "results" / "web_speed.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
