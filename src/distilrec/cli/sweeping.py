"""`distilrec sweep`: where distillation pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from distilrec.cli.app import DEFAULT_RUN, app
from distilrec.cli.terminal import show_sweep
from distilrec.cli.training import Begin, Device, Precision, begun_run, opened_run
from distilrec.errors import ConfigError

if TYPE_CHECKING:
    from distilrec.data.dataset import Dataset
    from distilrec.distill.sizes import SweepConfig
    from distilrec.runs.folder import Run

Number = TypeVar("Number", int, float)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Students:
    """What is trained, in place of what the section [sweep] of the configuration says."""

    sizes: Annotated[
        str | None, Parameter(name="--sizes", help="Sizes of the student, such as 4,8,16,32.")
    ] = None
    shares: Annotated[
        str | None,
        Parameter(
            name="--shares",
            help="Shares of the users that students are trained on, such as 0.05,0.2,1.0.",
        ),
    ] = None
    seeds: Annotated[
        int | None, Parameter(name="--seeds", help="Trainings of each student; claims need 3.")
    ] = None
    loss: Annotated[
        float | None,
        Parameter(name="--loss", help="Share of NDCG@10 that may be lost, such as 0.05."),
    ] = None
    minutes: Annotated[
        float | None,
        Parameter(name="--minutes", help="Minutes after which no new training begins."),
    ] = None


_BEGIN, _STUDENTS = Begin(), Students()


@app.command
def sweep(
    *,
    begin: Begin = _BEGIN,
    students: Students = _STUDENTS,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Train students of several sizes with and without distillation, and say where it pays.

    Writes sweep.html and the chosen [student] section. What the run lacks is made first. After an
    interruption, the same command resumes.
    """
    from distilrec import runs

    with _run(begin, device, precision) as (run, data):
        outcome = runs.sweep(run, data, _chosen(students, run.config.sweep))
    show_sweep(outcome)


@contextmanager
def _run(begin: Begin, device: str, precision: str) -> Iterator[tuple[Run, Dataset]]:
    """Yield the run that is begun, or that is there."""
    from distilrec import runs

    if begin.dataset is not None or begin.config is not None:
        with begun_run(begin) as (chosen, folder, progress, workers):
            yield runs.prepare(chosen, folder, progress, workers, device, precision)
    elif begin.seed is not None:
        raise ConfigError(
            "a run that is there has its seed",
            fix="leave out --seed, or begin the run with --config or --dataset",
            parameter="seed",
        )
    else:
        with opened_run(begin.run or DEFAULT_RUN, begin.ray, device, precision) as found:
            yield found


def _chosen(students: Students, config: SweepConfig) -> SweepConfig:
    """Return the configuration with what the command line says. Raises ConfigError."""
    import msgspec

    given = {
        "sizes": _numbers("--sizes", students.sizes, int),
        "shares": _numbers("--shares", students.shares, float),
        "seeds": students.seeds,
        "loss": students.loss,
        "minutes": students.minutes,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(config, **changes)


def _numbers(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> tuple[Number, ...] | None:
    """Return numbers that are separated by commas."""
    if text is None:
        return None
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} is {text!r}",
            fix="separate numbers by commas, such as "
            + ("4,8,16" if kind is int else "0.05,0.2,1.0"),
            parameter=option.strip("-"),
        ) from None
