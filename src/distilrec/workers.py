"""Who works on a job: this process, or the workers of a cluster (`distilrec.scale`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from distilrec.files import replacing

if TYPE_CHECKING:
    import polars as pl

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[..., None]


class Workers(Protocol):
    """Run a function over shards, or on all workers together."""

    def map(
        self, function: Callable[[Task, int], Result], task: Task, shards: Sequence[int]
    ) -> Iterator[Result]:
        """Yield function(task, shard) for every shard, in the order in which they finish. `task`
        goes to each worker once.
        """
        ...

    def together(self, function: Callable[[Report], Result], report: Report) -> Result:
        """Run function(report) on all workers, one `torch.distributed` group; return what the first
        of them returns, and report what it reports.

        The function must resume where it was when it is called again, as it is after the loss of a
        worker.
        """
        ...


def write_whole(
    table: pl.DataFrame, file: Path, compression: Literal["lz4", "zstd"] = "zstd"
) -> None:
    """Write Parquet, whole or not at all: a worker may die while it writes, and another do the same
    again.

    This is for files that are made again after a failure of the machine: they are not forced to the
    disk.
    """
    with replacing(file, durable=False, own=f".{os.getpid()}") as new:
        table.write_parquet(new, compression=compression)


class InProcess:
    """Run one shard after the other, in this process."""

    def map(
        self, function: Callable[[Task, int], Result], task: Task, shards: Sequence[int]
    ) -> Iterator[Result]:
        """See `Workers.map`."""
        return (function(task, shard) for shard in shards)

    def together(self, function: Callable[[Report], Result], report: Report) -> Result:
        """See `Workers.together`."""
        return function(report)
