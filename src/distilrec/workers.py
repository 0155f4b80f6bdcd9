"""Who works on the shards of a job: this process, one after the other, or the workers of a cluster (`distilrec.scale`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Protocol):
    """Whoever can run a function for many shards."""

    def map(self, function: Callable[[Task, int], Result], task: Task, shards: Sequence[int]) -> Iterator[Result]:
        """function(task, shard) for every shard, in the order in which they finish. `task` goes to each worker once."""
        ...


class InProcess:
    """Nobody else: one shard after the other, here."""

    def map(self, function: Callable[[Task, int], Result], task: Task, shards: Sequence[int]) -> Iterator[Result]:
        """See `Workers.map`."""
        return (function(task, shard) for shard in shards)
