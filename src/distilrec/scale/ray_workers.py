"""The workers of a Ray cluster: the same functions, on many cores or machines.

Every machine needs distilrec and must see the run folder under the same path (a shared file
system). A worker that dies is started again and its shard is made again; a training goes on after
its last epoch.
"""

from __future__ import annotations

import os
import queue
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distilrec.errors import ClusterError, DistilrecError, first_line, missing_extra
from distilrec.workers import Report

Task = TypeVar("Task")
Result = TypeVar("Result")
LOCAL = "local"
_RESTARTS = 3  # of a training
_ATTEMPTS = 4  # to start Ray
_LATE = "timed out during startup"  # what Ray says then
Started = TypeVar("Started")


class RayWorkers:
    """The workers of a cluster, one CPU each.

    address: of the cluster (`auto` finds the one that this machine belongs to); "local" starts one
    on this machine alone.
    count: maximum number of workers; None is one for each CPU of the cluster.
    shared: a folder that all machines see, for the notes of Ray Train; where it is left out, one of
    this machine alone.
    Raises MissingExtraError without Ray, and ClusterError where the cluster cannot be reached.
    """

    def __init__(
        self, address: str = LOCAL, count: int | None = None, shared: Path | None = None
    ) -> None:
        ray = connect(address)
        self.address, self.shared = address, shared
        self.count = max(1, count or int(ray.cluster_resources().get("CPU", 1)))
        self._idle: list[Any] = []

    def map(
        self, function: Callable[[Task, int], Result], task: Task, shards: Sequence[int]
    ) -> Iterator[Result]:
        """See `distilrec.workers.Workers.map`. Raises what the function raises, and ClusterError
        when workers are lost.
        """
        ray = _ray()
        # Once for each machine; in a list, or Ray would send what it stands for.
        shared = [ray.put(task)]
        waiting = list(reversed(shards))
        busy: dict[Any, Any] = {}
        try:
            for _ in range(min(self.count, len(waiting))):
                worker = self._idle.pop() if self._idle else self._new_worker()
                busy[worker.run.remote(function, shared, waiting.pop())] = worker
            while busy:
                ready, _ = ray.wait(list(busy), num_returns=1)
                result: Result = ray.get(ready[0])
                worker = busy.pop(ready[0])
                if waiting:
                    busy[worker.run.remote(function, shared, waiting.pop())] = worker
                else:
                    self._idle.append(worker)
                yield result
        except ray.exceptions.RayTaskError as problem:
            raise problem.cause from None
        except ray.exceptions.RayError as problem:
            raise _lost(problem) from None
        finally:
            for worker in busy.values():
                ray.kill(worker)

    def together(self, function: Callable[[Report], Result], report: Report) -> Result:
        """See `distilrec.workers.Workers.together`. Raises what the function raises, and
        ClusterError.
        """
        ray = _ray()
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.util.queue import Queue

        self.close()
        mailbox = Queue(actor_options={"num_cpus": 0})
        if self.shared is not None:
            self.shared.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="distilrec-ray-", dir=self.shared) as folder:
            trainer = TorchTrainer(
                _train,
                train_loop_config={"function": [ray.put(function)], "mailbox": mailbox},
                scaling_config=ScalingConfig(
                    num_workers=self.count, resources_per_worker={"CPU": 1}
                ),
                torch_config=TorchConfig(backend="gloo"),
                run_config=RunConfig(
                    storage_path=folder, failure_config=FailureConfig(max_failures=_RESTARTS)
                ),
            )
            problems: list[Exception] = []
            running = threading.Thread(target=_fit, args=(trainer, problems), daemon=True)
            running.start()
            kind: str = ""
            content: Any = None
            while kind in {"", "report"}:
                try:
                    kind, content = mailbox.get(timeout=0.2)
                except queue.Empty:
                    kind = ""
                    if not running.is_alive():
                        break
                if kind == "report":
                    report(*content)
            running.join()
        mailbox.shutdown(force=True)
        if kind == "raised":
            raise content
        if kind != "result":
            raise _lost(problems[0] if problems else RuntimeError("no worker gave a result"))
        outcome: Result = content
        return outcome

    def _new_worker(self) -> Any:
        ray = _ray()
        environment = {"env_vars": {"POLARS_MAX_THREADS": "1", "NUMBA_NUM_THREADS": "1"}}
        options = {
            "num_cpus": 1,
            "max_restarts": -1,
            "max_task_retries": -1,
            "runtime_env": environment,
        }
        return ray.remote(**options)(_Worker).remote()

    def close(self) -> None:
        """Give the CPUs of idle workers back to the cluster."""
        while self._idle:
            _ray().kill(self._idle.pop())


class _Worker:
    """Lives in a process of its own and keeps the last task, so that a model is sent there once."""

    def __init__(self) -> None:
        self._reference: Any = None
        self._task: Any = None

    def run(self, function: Callable[[Any, int], Any], shared: list[Any], shard: int) -> Any:
        if self._reference != shared[0]:
            self._reference, self._task = shared[0], _ray().get(shared[0])
        _allow_shared_arrays()
        return function(self._task, shard)


def _train(config: dict[str, Any]) -> None:
    """Train as one of several workers; the first one sends what comes of it."""
    from ray.train import get_context

    first, mailbox = get_context().get_world_rank() == 0, config["mailbox"]

    def report(*content: object) -> None:
        if first:
            mailbox.put(("report", content))

    _allow_shared_arrays()
    function = _ray().get(config["function"][0])
    try:
        outcome = ("result", function(report))
    except DistilrecError as problem:  # the same in every worker; to try again would not help
        outcome = ("raised", problem)
    if first:
        mailbox.put(outcome)


def _fit(trainer: Any, problems: list[Exception]) -> None:
    try:
        trainer.fit()
    except Exception as problem:
        problems.append(problem)


def _allow_shared_arrays() -> None:
    """Silence a warning of torch: Ray lets workers of one machine read the same memory, and none of
    them writes to it.
    """
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def connect(address: str) -> Any:
    """Return Ray, connected to this cluster. Raises MissingExtraError and ClusterError."""
    ray = _ray()
    # Or Ray warns that it will change its mind.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return ray
    options = {
        "address": address,
        "log_to_driver": False,
        "include_dashboard": False if address == LOCAL else None,
        "logging_level": "ERROR",
    }
    try:
        _check(address)
        start_patiently(lambda: ray.init(**options), ray.shutdown)
    except (OSError, RuntimeError, ValueError) as problem:
        raise ClusterError(
            f"the Ray cluster {address!r} cannot be reached: {first_line(problem)}",
            fix="check the address (`ray status` shows the cluster), or use --ray local for this "
            "machine alone",
            address=address,
        ) from None
    return ray


def start_patiently(start: Callable[[], Started], end: Callable[[], object]) -> Started:
    """Return what start() gives, and try again where Ray's processes took too long to start: it
    waits 30 s for them, which can be too short on a busy machine.

    end: called between two attempts. Raises RuntimeError after the last one, and what start()
    raises otherwise.
    """
    for _ in range(_ATTEMPTS):
        try:
            return start()
        except Exception as problem:  # Ray raises nothing more special
            if _LATE not in str(problem):
                raise
            late = first_line(problem)
            end()
    raise RuntimeError(late)


def _lost(problem: Exception) -> ClusterError:
    return ClusterError(
        f"workers of the Ray cluster were lost: {first_line(problem)}",
        fix="run the command again: what has been made is used",
    )


def _check(address: str) -> None:
    """Raise OSError where no server listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=5).close()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    return ray
