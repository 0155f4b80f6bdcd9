"""Shards on the workers of a Ray cluster: the same functions, on many cores or machines.

Every machine needs distilrec and must see the run folder under the same path (a shared file system). A worker that dies is
started again and its shard is made again; what was made before stays.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from distilrec.errors import ClusterError, missing_extra

Task = TypeVar("Task")
Result = TypeVar("Result")
LOCAL = "local"


class RayWorkers:
    """The workers of a cluster, one CPU each.

    address: of the cluster (`auto` finds the one that this machine belongs to); "local" starts one on this machine alone.
    count: how many workers at most; None is one for each CPU of the cluster.
    Raises MissingExtraError without Ray, and ClusterError where the cluster cannot be reached.
    """

    def __init__(self, address: str = LOCAL, count: int | None = None) -> None:
        ray = _ray()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns that it will change its mind
        if not ray.is_initialized():
            try:
                _check(address)
                ray.init(
                    address=None if address == LOCAL else address,
                    log_to_driver=False,
                    include_dashboard=False if address == LOCAL else None,
                    logging_level="ERROR",
                )
            except (OSError, RuntimeError, ValueError) as problem:
                raise ClusterError(
                    f"the Ray cluster {address!r} cannot be reached: {str(problem).splitlines()[0]}",
                    fix="check the address (`ray status` shows the cluster), or use --ray local for this machine alone",
                    address=address,
                ) from None
        self.count = max(1, count or int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[Task, int], Result], task: Task, shards: Sequence[int]) -> Iterator[Result]:
        """See `distilrec.workers.Workers.map`. Raises what the function raises, and ClusterError when workers are lost."""
        ray = _ray()
        shared = ray.put(task)  # once for each machine
        worker = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Worker)
        waiting = list(reversed(shards))
        busy: dict[Any, Any] = {}
        try:
            for _ in range(min(self.count, len(waiting))):
                actor = worker.remote(function, shared)
                busy[actor.run.remote(waiting.pop())] = actor
            while busy:
                ready, _ = ray.wait(list(busy), num_returns=1)
                actor = busy.pop(ready[0])
                result: Result = ray.get(ready[0])
                if waiting:
                    busy[actor.run.remote(waiting.pop())] = actor
                yield result
        except ray.exceptions.RayTaskError as problem:
            raise problem.cause from None
        except ray.exceptions.RayError as problem:
            raise ClusterError(
                f"workers of the Ray cluster were lost: {str(problem).splitlines()[0]}",
                fix="run the command again: what has been made is used",
            ) from None
        finally:
            for actor in busy.values():
                ray.kill(actor)


class _Worker:
    """Lives in a process of its own and keeps the task, so that a model is sent there once."""

    def __init__(self, function: Callable[[Task, int], Result], task: Task) -> None:
        self._function: Callable[[Any, int], Any] = function
        self._task = task

    def run(self, shard: int) -> Any:
        return self._function(self._task, shard)


def _check(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=5).close()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    return ray
