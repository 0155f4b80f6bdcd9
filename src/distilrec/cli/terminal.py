"""What a person sees of long work: progress bars and tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from distilrec.report.comparison import Comparison
    from distilrec.report.sweep import Sweep


@contextmanager
def terminal_progress() -> Iterator[TerminalProgress]:
    """Yield a progress that is shown until the block ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    shown = console.is_terminal
    # An epoch may take minutes: the estimate must remember more than the last half a minute.
    with Progress(
        *columns, console=console, disable=not shown, speed_estimate_period=86_400.0
    ) as bars:
        yield TerminalProgress(bars)


class TerminalProgress:
    """Show progress bars on standard error.

    Where standard error is not a terminal, write a line every half a minute.
    """

    def __init__(self, bars: Progress, every: float = 30.0) -> None:
        self._bars, self._every = bars, every
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def say(self, line: str) -> None:
        self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, note=note)
        self._bars.update(self._tasks[task], completed=done, total=total, note=note)
        if not self._bars.console.is_terminal and time.monotonic() - self._said > self._every:
            self._said = time.monotonic()
            left = self._bars.tasks[self._tasks[task]].time_remaining
            about = "" if left is None else f", about {timedelta(seconds=round(left))} to go"
            self.say(f"{task}: {done} of {total}{about}{note and f' ({note})'}")


def show_comparison(comparison: Comparison) -> None:
    """Print the table of a comparison and its verdict."""
    from distilrec.report.page import table, verdict

    _print_table(
        f"{comparison.dataset}, {comparison.split}, test part, {comparison.users:,} users",
        table(comparison),
    )
    for line in verdict(comparison):
        print(line)


def show_sweep(sweep: Sweep) -> None:
    """Print the table of a sweep, what it says, and the section of the chosen student."""
    from distilrec.report.sweep_page import section, sweep_table
    from distilrec.report.sweep_words import headline, sentences

    _print_table(
        f"{sweep.dataset}, {sweep.split}, {sweep.users:,} users, trainings of each student: "
        f"{sweep.seeds}",
        sweep_table(sweep),
    )
    for line in (headline(sweep), *sentences(sweep)):
        print(line)
    print(f"\n{section(sweep)}", end="")


def _print_table(title: str, lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    header, *rows = lines
    shown = Table(title=title)
    for position, name in enumerate(header):
        shown.add_column(name, justify="left" if position == 0 else "right", no_wrap=position > 0)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    wide = console if console.width >= 170 else Console(width=170)
    wide.print(shown)
