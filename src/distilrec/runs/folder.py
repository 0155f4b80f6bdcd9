"""The whole line, stage by stage, in one run folder. Every stage reads what the one before wrote.

runs/ml-100k/ config.json       all choices of the run data/             the prepared data set
teacher/          the trained teacher        checkpoints/   unfinished trainings (resumed, then
removed) labels/           its soft and hard labels (of each member of an ensemble, for a
curriculum) student/          the distilled student      alone/         the same student without
distillation bundle/           what is served             bundle-alone/  the same, of the student
without distillation seen/             which users each exported model was trained on (`distilrec
seen`) erased-users.txt  whom `prepare` leaves out from now on (`distilrec forget`);
unfinished-erasure.json is there meanwhile costs.json        time and memory of each stage
comparison.json   report.html
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from distilrec.data.dataset import PREPARED, Dataset, load_dataset
from distilrec.errors import ConfigError, DataError, FileMissingError
from distilrec.files import key_of, read_json
from distilrec.progress import Progress, Silent
from distilrec.report.comparison import (
    StageCost,
)
from distilrec.runs import erasure
from distilrec.runs.config import RunConfig
from distilrec.teachers.teacher import Teacher
from distilrec.training.devices import resolve_device
from distilrec.training.options import RunOptions
from distilrec.workers import InProcess, Workers


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration. own_teacher: given from Python, takes the place of the
    configured one; workers: run what can be cut into shards; device: where networks are trained and
    asked, no part of the configuration.
    """

    folder: Path
    config: RunConfig
    progress: Progress
    own_teacher: Teacher | None = None
    workers: Workers = field(default_factory=InProcess)
    device: str = "auto"

    @property
    def options(self) -> RunOptions:
        """The circumstances of every training of this run."""
        return RunOptions(self.device, workers=self.workers, progress=self.progress)

    @property
    def teacher_seed(self) -> int:
        seed = self.config.teacher_seed
        return self.config.seed if seed is None else seed

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def bundle_alone(self) -> Path:
        return self.folder / "bundle-alone"


def open_run(
    folder: Path,
    progress: Progress | None = None,
    workers: Workers | None = None,
    device: str = "auto",
) -> Run:
    """Open a run that `prepare` began. Raises FileMissingError and ConfigError."""
    resolve_device(device)  # a device that is not there is refused before the work begins
    path = folder / "config.json"
    if not path.is_file():
        raise FileMissingError(
            f"{folder} is no run folder (no config.json)",
            fix="check the path; `distilrec prepare` begins a run",
            file=str(path),
        )
    config = read_json(
        path, RunConfig, error=ConfigError, fix="begin again with `distilrec prepare`"
    )
    return Run(folder, config, progress or Silent(), workers=workers or InProcess(), device=device)


def open_data(run: Run) -> Dataset:
    """Returns the prepared data of a run, after finishing an erasure that was interrupted.

    Raises FileMissingError and DataError, also where `prepare` was interrupted between the data and
    the configuration.
    """
    for line in erasure.finish(run.folder):
        run.progress.say(f"finishing an erasure that was interrupted: {line}")
    dataset = load_dataset(run.folder / "data")
    if PREPARED.made_from(run.folder / "data") not in ("", choices_of(run.config)):
        raise DataError(
            f"the data in {run.folder / 'data'} were prepared with other choices than those in "
            "config.json",
            fix="run `distilrec prepare` again, which was interrupted",
            file=str(run.folder / "data"),
        )
    return dataset


def choices_of(config: RunConfig) -> str:
    """Returns a key of the choices that a preparation depends on, without the paths of the files,
    which may be moved.
    """
    paths = {"interactions", "users", "items", "erased_users", "erased_users_must_exist"}
    data = {
        name: value
        for name, value in msgspec.structs.asdict(config.data).items()
        if name not in paths
    }
    return key_of(data, config.cleaning, config.split)


def read_costs(folder: Path) -> tuple[StageCost, ...]:
    """Time and memory of the stages of a run so far."""
    path = folder / "costs.json"
    if not path.is_file():
        return ()
    fix = "delete it: only the times of the stages so far are lost"
    return read_json(path, tuple[StageCost, ...], error=ConfigError, fix=fix)
