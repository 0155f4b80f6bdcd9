"""What a person sees of long work, on a terminal and in a log file."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from distilrec.cli.terminal import TerminalProgress


def follow(console: Console, times: list[float], monkeypatch) -> str:
    clock = iter(times)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    now = [next(clock)]
    bars = Progress(
        TimeRemainingColumn(), console=console, auto_refresh=False, speed_estimate_period=86_400.0,
        get_time=lambda: now[0],
    )  # fmt: skip
    progress = TerminalProgress(bars)
    for done, when in enumerate(clock):
        now[0] = when
        progress.advance("teacher", done, 4, f"loss {done}")
    return console.file.getvalue()


def test_a_log_file_gets_a_line_every_half_a_minute_with_an_estimate(monkeypatch):
    said = follow(Console(file=io.StringIO(), width=200), [0, 10, 60, 70, 160, 200], monkeypatch)
    assert said.splitlines() == [
        "teacher: 1 of 4 (loss 1)",
        "teacher: 3 of 4, about 0:00:50 to go (loss 3)",
        "teacher: 4 of 4, about 0:00:00 to go (loss 4)",
    ]


def test_a_terminal_gets_bars_and_no_lines(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True)
    assert follow(console, [0, 10, 60, 70, 160, 200], monkeypatch) == ""
