"""Running the service: one process, or several that share a store."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from distilrec.serve.app import make_app
from distilrec.serve.config import ServiceConfig
from distilrec.serve.connections import LimitedProtocol
from distilrec.serve.keys import read_keys
from distilrec.serve.logs import log, start_logging
from distilrec.serve.service import Service, open_service
from distilrec.serve.workers import address_of, ignore_hangup, supervise

_GRACE_SECONDS = 10
_KEEP_ALIVE = 30
# Seconds; the store's threads are woken for microseconds, and must not wait for 5 ms.
_SWITCH_INTERVAL = 0.0005
_NOT_STARTED = 3  # exit code


class _Server(uvicorn.Server):
    """A server that first says that it is not ready any more, and closes its door a while later."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it can be reached: the system chooses the port where 0 was asked for."""
        await super().startup(sockets)
        for server in self.servers:
            log("listening", address=address_of(self.config.host, server.sockets[0]))

    def end(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal outside uvicorn's own care: one that comes just before it ends the server
        as soon as that has started; one that uvicorn raises again after an orderly stop changes
        nothing any more, least of all the exit code.
        """
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_seconds and sig == signal.SIGTERM and not self._service.draining:
            log("draining", seconds=self._drain_seconds)
            self._service.drain()
            asyncio.get_running_loop().call_later(
                self._drain_seconds, super().handle_exit, sig, frame
            )
            return
        self._service.drain()
        super().handle_exit(sig, frame)


def serve(config: ServiceConfig) -> None:
    """Serve until it is told to stop. Raises BundleErrors, StoreErrors, ConfigError and
    FileMissingError before that.
    """
    start_logging()
    if config.workers > 1:
        try_out(config)
        if code := supervise(config):
            sys.exit(code)
        return
    run(config)


def try_out(config: ServiceConfig) -> None:
    """Open all that a worker will open, and let go of it: what cannot work had better fail here,
    once and with a clear message. Raises what `serve` raises.
    """
    read_keys(config.keys)
    open_service(config).store.close()


def run(config: ServiceConfig, sockets: list[socket.socket] | None = None) -> None:
    """Serve in this process, on sockets that listen already where there are some. Raises what
    `serve` raises.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    keys = read_keys(config.keys)
    service = open_service(config)
    app = make_app(service, keys)
    settle()
    server = _Server(uvicorn.Config(app, **_options(config)), service, config.drain_seconds)
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, server.end)
    ignore_hangup()
    server.run(sockets)
    if not server.started:
        sys.exit(_NOT_STARTED)


def settle() -> None:
    """Take what will live as long as the process (catalogue, code) out of the garbage collector's
    rounds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _options(config: ServiceConfig) -> dict[str, Any]:
    return {
        "host": config.host,
        "port": config.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "lifespan": "on",
        "loop": "uvloop",
        "http": LimitedProtocol,
        "ws": "none",
        "timeout_keep_alive": _KEEP_ALIVE,
        "timeout_graceful_shutdown": _GRACE_SECONDS,
        "backlog": 2048,
    }
