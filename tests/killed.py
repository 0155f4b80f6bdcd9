"""What happens to files when a process is killed: dies before the n-th change of a folder, and leaves torn what was not synced.

`run_killed` runs the command line in a process that kills itself (SIGKILL) there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = ("fsync", "replace", "rename", "unlink", "remove", "rmdir")


class Killed(BaseException):
    """The process is dead: nothing that it does afterwards reaches the folder."""


@contextmanager
def dying(folder: Path, number: int, die: Callable[[], None]) -> Iterator[list[str]]:
    """Calls `die` before change `number` (from 1) of the folder, and before every one after it; gives the changes so far."""
    there, changes = str(folder.absolute()), list[str]()
    real = {name: getattr(os, name) for name in _CHANGES}

    def watched(name: str) -> Callable[..., Any]:
        def change(path: Any, *rest: Any, **options: Any) -> Any:
            where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
            if (at := options.get("dir_fd")) is not None:
                where = os.path.join(os.readlink(f"/proc/self/fd/{at}"), where)
            if os.path.abspath(where).startswith(there):
                changes.append(f"{name} {where.removeprefix(there)}")
                if len(changes) >= number:
                    if name == "fsync" and os.path.isfile(where):
                        os.truncate(where, os.path.getsize(where) // 2)
                    die()
            return real[name](path, *rest, **options)

        return change

    for name in _CHANGES:
        setattr(os, name, watched(name))
    try:
        yield changes
    finally:
        for name in _CHANGES:
            setattr(os, name, real[name])


@contextmanager
def killed(folder: Path, number: int) -> Iterator[list[str]]:
    """The same within a test: the block ends where it would have been killed."""

    def die() -> None:
        raise Killed

    with dying(folder, number, die) as changes:
        try:
            yield changes
        except Killed:
            return


def run_killed(number: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `distilrec ARGUMENTS…` in a process of its own that is killed before change `number` of the folder.

    Tests work in folders of their own, so that the process is told where this package lies.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(number), str(folder), *arguments],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return ended


if __name__ == "__main__":
    from distilrec.cli import main

    with dying(Path(sys.argv[2]), int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        main(sys.argv[3:])
