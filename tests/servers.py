"""Real servers for the tests: Redis, and the service through its command line."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest


def program(name: str) -> str:
    """The path of a program from the system's packages; the test is skipped without it, or fails in CI."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is not installed (make system)"
        if os.environ.get("DISTILREC_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Redis:
    """A Redis server of its own, durable, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        options = {
            "port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "appendonly": "yes",
            "appendfsync": "always", "daemonize": "no",
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [program("redis-server"), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Server:
    """`distilrec serve` in a process of its own."""

    def __init__(
        self, bundle: Path, store: str, *options: object, port: int | None = None, wait: bool = True,
        python: Sequence[str] = (sys.executable,), log_folder: Path | None = None, **popen,
    ):  # fmt: skip
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = (log_folder or Path(bundle).parent) / f"serve-{self.port}-{time.monotonic_ns()}.log"
        command = [
            *python, "-m", "distilrec.cli", "serve", "--bundle", bundle, "--store", store, "--port", self.port,
            *options,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=log, start_new_session=True, **popen
            )
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        if wait:
            self.wait()

    def wait(self) -> None:
        for _ in range(3_000):
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended with {self.process.returncode}: {self.log.read_text()}")
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.01)
        raise AssertionError(f"the service is not ready: {self.log.read_text()}")

    def post(self, path: str, **body) -> dict:
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def items(self, user: str, **more) -> list[str]:
        return [item["item_id"] for item in self.post("/v1/recommend", user_id=user, **more)["items"]]

    def event(self, user: str, item: str, **more) -> dict:
        return self.post("/v1/events", events=[{"user_id": user, "item_id": item, **more}])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.client.close()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.client.close()
        return self.process.wait(30)
