"""Progress of a run."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receive the progress of a run; `cli` shows it as progress bars."""

    def say(self, line: str) -> None:
        """Report a finding that is worth a line."""
        ...

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` steps of a task are finished."""
        ...


class Silent:
    """Ignore all progress."""

    def say(self, line: str) -> None:
        pass

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        pass


class Lines(Silent):
    """Write the findings to standard output, one a line."""

    def say(self, line: str) -> None:
        print(line, flush=True)  # noqa: T201
