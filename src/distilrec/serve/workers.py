"""Several worker processes behind one address, and the process that keeps them alive.

The supervisor opens the socket, hands it to every worker, and starts a worker again that has ended:
immediately where it had lived for a while, later and later where it could not start. It never
gives up, since the others go on answering. A worker notices the end of the supervisor by a pipe
that breaks, and then stops in an orderly way: nothing is left on the port.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType

import msgspec
from prometheus_client.multiprocess import mark_process_dead

from distilrec.errors import ConfigError, DistilrecError
from distilrec.serve.config import ServiceConfig
from distilrec.serve.logs import log, start_logging

CONFIG_VARIABLE = "DISTILREC_SERVICE"  # how a worker process learns its configuration
_STABLE_SECONDS = 10.0  # a worker that lived this long had started well
# Seconds before a worker that could not start is started again.
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_LOOK_SECONDS = 0.1
_STOP_SECONDS = 25.0  # beyond the time for draining: then a worker is killed


class _Worker:
    """A worker process, which is started again when it has ended."""

    def __init__(
        self, command: list[str], environment: dict[str, str], handles: tuple[int, ...]
    ) -> None:
        self._command, self._environment, self._handles = command, environment, handles
        self.process: subprocess.Popen[bytes] | None = None
        self._started = self._next_start = 0.0
        self._failures = 0

    def tend(self, metrics: str) -> None:
        """Start the process where there is none and it is time; take note where it has ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._next_start:
                self.process = subprocess.Popen(  # noqa: S603 - our own command
                    self._command, env=self._environment, pass_fds=self._handles
                )
                self._started = now
            return
        code = self.process.poll()
        if code is None:
            return
        mark_process_dead(self.process.pid, metrics)  # type: ignore[no-untyped-call]
        self._failures = 0 if now - self._started > _STABLE_SECONDS else self._failures + 1
        delay = (
            min(_FIRST_DELAY * 2 ** (self._failures - 1), _LONGEST_DELAY) if self._failures else 0.0
        )
        log(
            "a worker has ended",
            logging.WARNING,
            exit_code=code,
            worker=self.process.pid,
            restart_in_seconds=delay,
        )
        self.process, self._next_start = None, now + delay


def supervise(config: ServiceConfig) -> int:
    """Run the workers until told to stop by SIGTERM or SIGINT; return the exit code: 0 where all
    have stopped in order.

    Raises ConfigError where the address cannot be used.
    """
    listener = _listen(config)
    # The workers read from it, and only this process can write: it breaks when this one ends.
    lifeline, held = os.pipe()
    metrics = tempfile.mkdtemp(prefix="distilrec-metrics-")
    environment = {
        **os.environ,
        CONFIG_VARIABLE: msgspec.json.encode(config).decode(),
        "PROMETHEUS_MULTIPROC_DIR": metrics,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "distilrec.serve.workers",
        str(listener.fileno()),
        str(lifeline),
    ]
    workers = [
        _Worker(command, environment, (listener.fileno(), lifeline)) for _ in range(config.workers)
    ]
    received: list[int] = []
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda number, _: received.append(number))
    ignore_hangup()
    try:
        while not received:
            for worker in workers:
                worker.tend(metrics)
            time.sleep(_LOOK_SECONDS)
        return _stop(
            [worker.process for worker in workers if worker.process], received, config.drain_seconds
        )
    finally:
        os.close(held)
        os.close(lifeline)
        listener.close()
        shutil.rmtree(metrics, ignore_errors=True)


def _stop(
    processes: list[subprocess.Popen[bytes]], received: list[int], drain_seconds: float
) -> int:
    """Hand the signals on, wait, and kill what does not end."""
    deadline = time.monotonic() + drain_seconds + _STOP_SECONDS
    forwarded = 0
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        for number in received[forwarded:]:
            for process in processes:
                process.send_signal(number)
            forwarded += 1
        time.sleep(_LOOK_SECONDS)
    late = [process for process in processes if process.poll() is None]
    for process in late:
        log("a worker did not stop and is killed", logging.ERROR, worker=process.pid)
        process.kill()
        process.wait()
    # A worker that was just starting ends by the signal itself.
    orderly = {0, *(-number for number in received)}
    return 0 if all(process.returncode in orderly for process in processes) else 1


def _listen(config: ServiceConfig) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError as problem:
        listener.close()
        raise ConfigError(
            f"{config.host}:{config.port} cannot be used: {problem.strerror}",
            fix="stop what uses it, or choose another --port",
            parameter="port",
        ) from None
    log("supervising", address=address_of(config.host, listener), workers=config.workers)
    return listener


def address_of(host: str, listener: socket.socket) -> str:
    """Return the URL of a socket that listens at this host."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def ignore_hangup() -> None:
    """SIGHUP changes nothing: keys are read again by themselves, models are switched over HTTP,
    SIGTERM stops.
    """

    def note(number: int, frame: FrameType | None) -> None:
        log("SIGHUP is ignored; SIGTERM stops the service", logging.WARNING)

    signal.signal(signal.SIGHUP, note)


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)  # there is never anything: it returns when the supervisor has ended
    log("the supervisor has ended", logging.WARNING)
    os.kill(os.getpid(), signal.SIGTERM)


def _work(listener: int, lifeline: int) -> None:
    """Work as a worker process, until told to stop."""
    from distilrec.serve.server import run

    start_logging()
    config = msgspec.json.decode(os.environ[CONFIG_VARIABLE], type=ServiceConfig)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
    try:
        run(config, [socket.socket(fileno=listener)])
    except DistilrecError as problem:
        log("a worker cannot start", logging.ERROR, code=problem.code, reason=problem.message)
        sys.exit(2)


if __name__ == "__main__":
    _work(*map(int, sys.argv[1:3]))
