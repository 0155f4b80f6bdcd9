"""The application: the options that commands share, and what an error looks like."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Parameter

from distilrec._version import __version__
from distilrec.errors import (
    ConfigError,
    DistilrecError,
    FolderHeldError,
    StorageError,
    missing_extra,
)
from distilrec.files import locked

DEFAULT_RUN = Path("runs/ml-100k")
_TRY_AGAIN, _FAULT = 75, 70  # EX_TEMPFAIL and EX_SOFTWARE of sysexits.h
_EXTRAS = {  # which extra brings a package
    **dict.fromkeys(("torch", "polars", "jinja2", "matplotlib", "markupsafe"), "train"),
    "optuna": "tune",
    "opacus": "privacy",
    "dataframely": "checks",
}

app = App(
    name="distilrec",
    version=__version__,
    help="Distil any recommender into a student that answers in microseconds on one CPU core, "
    "with proof.\n\n"
    "The main job in one command: `distilrec run --dataset ml-100k`. Your own data: `distilrec "
    "run --config my.toml`.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `main` says how to resume
)

RunFolder = Annotated[Path, Parameter(name="--run", help="Folder of the run.")]
Ray = Annotated[
    str | None,
    Parameter(
        name="--ray",
        help="Spread the work over a Ray cluster: its address, auto, or local for this machine "
        "alone.",
    ),
]
Bundle = Annotated[
    Path | None, Parameter(name="--bundle", help="Bundle folder; runs/ml-100k/bundle by default.")
]
UserId = Annotated[str, Parameter(name=["--user_id", "--user-id"], help="Who.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    A DistilrecError becomes a message and exit code 2, or 75 where another process holds the
    folder; Ctrl-C becomes exit code 130. Any other exception is a fault of distilrec: exit code 70,
    because 1 says that a gate was missed, or that something has moved.
    """
    # A terminal without UTF-8 gets escapes where it has no character.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(arguments)
    except Exception:
        _end_at_fault()


def _run(arguments: Sequence[str] | None) -> None:
    try:
        app(arguments, result_action="return_value", exit_on_error=False)
    except CycloptsError:  # wrong options: cyclopts has already said which
        sys.exit(2)
    except FolderHeldError as error:
        _fail(error, _TRY_AGAIN)
    except DistilrecError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(missing_extra(package, _EXTRAS[package]))
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to resume.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UnicodeEncodeError as error:  # a file name, where the system's names are not UTF-8
        _fail(
            ConfigError(
                f"{error.object!a} cannot be written in {error.encoding}, the encoding of this "
                "system",
                fix="set PYTHONUTF8=1, or a locale with UTF-8",
            )
        )
    except OSError as error:
        _fail(StorageError(str(error), fix="check the space and the permissions of that folder"))


def _end_at_fault() -> NoReturn:
    traceback.print_exc()
    print(
        "error: this is a fault of distilrec, not of your data: please report the lines above",
        file=sys.stderr,
    )
    sys.exit(_FAULT)


def _fail(error: DistilrecError, code: int = 2) -> NoReturn:
    print(f"error [{error.code}]: {error}", file=sys.stderr)
    sys.exit(code)


def bundle_folder(given: Path | None) -> Path:
    """Return the bundle that a command works on: the given one, or the one of DISTILREC_BUNDLE."""
    return given or Path(os.environ.get("DISTILREC_BUNDLE", DEFAULT_RUN / "bundle"))


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Let one command at a time work on a run folder, where there is one."""
    with locked(run, wait=False) if run.is_dir() else nullcontext():
        yield
