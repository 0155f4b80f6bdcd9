"""Progress of a run: who is told, and how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Who wants to know how far a run is; `cli` shows it as progress bars."""

    def say(self, line: str) -> None:
        """A finding worth a line."""
        ...

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of a task are finished."""
        ...


class Silent:
    """Nobody."""

    def say(self, line: str) -> None:
        pass

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        pass


class Lines(Silent):
    """Somebody who reads a log file: only the findings, one a line."""

    def say(self, line: str) -> None:
        print(line, flush=True)  # noqa: T201
