"""A run: its folder, its configuration, and who works on it.

Where everything is: `distilrec.runs.places`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from distilrec.data.dataset import PREPARED, Dataset, load_dataset
from distilrec.data.queries import Query
from distilrec.errors import ConfigError, DataError, FileMissingError
from distilrec.files import key_of, read_json
from distilrec.progress import Progress, Silent
from distilrec.report.comparison import StageCost
from distilrec.runs import erasure
from distilrec.runs.config import RunConfig
from distilrec.runs.places import Places
from distilrec.teachers.teacher import Teacher
from distilrec.training.devices import resolve_device
from distilrec.training.options import RunOptions
from distilrec.training.precision import resolve_precision
from distilrec.workers import InProcess, Workers


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration. own_teacher: given from Python, takes the place of the
    configured one; labels: where its labels are, in the run folder by default; workers: run what
    can be cut into shards; device: where networks are trained and asked; precision: what their
    matrix products are computed in while they are trained. Neither is a part of the configuration.
    """

    folder: Path
    config: RunConfig
    progress: Progress
    own_teacher: Teacher | None = None
    labels: Path | None = None
    workers: Workers = field(default_factory=InProcess)
    device: str = "auto"
    precision: str = "auto"

    @property
    def options(self) -> RunOptions:
        """The circumstances of every training of this run."""
        return RunOptions(self.device, self.precision, workers=self.workers, progress=self.progress)

    @property
    def teacher_seed(self) -> int:
        seed = self.config.teacher_seed
        return self.config.seed if seed is None else seed

    @property
    def places(self) -> Places:
        """The files and folders of this run."""
        return Places(self.folder)

    @property
    def bundle(self) -> Path:
        return self.places.bundle

    @property
    def bundle_baseline(self) -> Path:
        return self.places.bundle_baseline


def open_run(
    folder: Path,
    progress: Progress | None = None,
    workers: Workers | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Run:
    """Open a run that `prepare` began. Raises FileMissingError and ConfigError."""
    path = Places(folder).config
    if not path.is_file():
        raise FileMissingError(
            f"{folder} is not a run folder: it has no config.json",
            fix="check the path; `distilrec prepare` begins a run",
            file=str(path),
        )
    config = read_json(
        path, RunConfig, error=ConfigError, fix="begin again with `distilrec prepare`"
    )
    return run_of(folder, config, progress, workers, device, precision)


def run_of(
    folder: Path,
    config: RunConfig,
    progress: Progress | None,
    workers: Workers | None,
    device: str,
    precision: str,
) -> Run:
    """Return a run. Raises ConfigError where this machine lacks the device or the precision, before
    any work begins.
    """
    resolve_precision(precision, resolve_device(device))
    return Run(
        folder,
        config,
        progress or Silent(),
        workers=workers or InProcess(),
        device=device,
        precision=precision,
    )


def open_data(run: Run) -> Dataset:
    """Return the prepared data of a run, after finishing an erasure that was interrupted.

    Raises FileMissingError and DataError, also where `prepare` was interrupted between the data and
    the configuration.
    """
    finish_erasure(run)
    dataset = load_dataset(run.places.data)
    if PREPARED.made_from(run.places.data) not in ("", choices_of(run.config)):
        raise DataError(
            f"the data in {run.places.data} were prepared with other choices than those in "
            "config.json",
            fix="run `distilrec prepare` again, which was interrupted",
            file=str(run.places.data),
        )
    return dataset


def finish_erasure(run: Run) -> None:
    """Finish an erasure that was interrupted, and say so."""
    for line in erasure.finish(run.folder):
        run.progress.say(f"finishing an erasure that was interrupted: {line}")


def choices_of(config: RunConfig) -> str:
    """Return a key of the choices that a preparation depends on: with the text of queries, without
    the addresses of files and databases, which may be moved, and without `ties` that are not drawn
    on request: data had the order of the rows before there was a choice.
    """
    left_out = {"interactions", "users", "items", "erased_users", "erased_users_must_exist"}
    if config.data.ties in ("auto", "rows"):
        left_out.add("ties")
    data = {
        name: value.query if isinstance(value, Query) else value
        for name, value in msgspec.structs.asdict(config.data).items()
        if isinstance(value, Query) or name not in left_out
    }
    targets = () if config.targets is None else (config.targets,)
    return key_of(data, config.cleaning, config.split, *targets)


def read_costs(folder: Path) -> tuple[StageCost, ...]:
    """Return time and memory of the stages of a run so far."""
    path = Places(folder).costs
    if not path.is_file():
        return ()
    fix = "delete it: only the times of the stages so far are lost"
    return read_json(path, tuple[StageCost, ...], error=ConfigError, fix=fix)
