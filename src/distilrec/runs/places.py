"""Where everything of a run is: the only place that knows the names in a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TEACHER, STUDENT, BASELINE = "teacher", "student", "baseline"
SEEN = "seen"
_FORMER = {BASELINE: "alone", "bundle-baseline": "bundle-alone"}  # as earlier versions wrote them


@dataclass(frozen=True)
class Places:
    """The files and folders of a run."""

    folder: Path

    @property
    def config(self) -> Path:
        """All choices of the run."""
        return self.folder / "config.json"

    @property
    def data(self) -> Path:
        """The prepared data set."""
        return self.folder / "data"

    @property
    def parts(self) -> Path:
        """Parts of the log, while the data are prepared."""
        return self.data / "parts"

    @property
    def teacher(self) -> Path:
        """The trained teacher."""
        return self.folder / TEACHER

    @property
    def labels(self) -> Path:
        """The labels of the teacher; of each member of an ensemble, for a curriculum."""
        return self.folder / "labels"

    @property
    def student(self) -> Path:
        """The distilled student."""
        return self.folder / STUDENT

    @property
    def baseline(self) -> Path:
        """The same student without distillation."""
        return self.model(BASELINE)

    @property
    def bundle(self) -> Path:
        """What is served."""
        return self.folder / "bundle"

    @property
    def bundle_baseline(self) -> Path:
        """The same of the student without distillation."""
        return self._found("bundle-baseline")

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All bundles of the run, those under a former name too."""
        former = self.folder / _FORMER["bundle-baseline"]
        return tuple(dict.fromkeys((self.bundle, self.bundle_baseline, former)))

    @property
    def checkpoints(self) -> Path:
        """Unfinished trainings, which are resumed and then removed."""
        return self.folder / "checkpoints"

    @property
    def tuning(self) -> Path:
        """The trials of `distilrec tune`."""
        return self.folder / "tuning"

    @property
    def tuned(self) -> Path:
        """The best hyper-parameters that `distilrec tune` found."""
        return self.folder / "tuned.toml"

    @property
    def sweep(self) -> Path:
        """The students of `distilrec sweep`, and what they gave to each user."""
        return self.folder / "sweep"

    @property
    def sweep_report(self) -> Path:
        """What a sweep has found, as a page."""
        return self.folder / "sweep.html"

    @property
    def sweep_section(self) -> Path:
        """The student that a sweep has chosen, as a section of a configuration."""
        return self.folder / "sweep.toml"

    @property
    def seen(self) -> Path:
        """The record of users that each exported model was trained on."""
        return self.folder / SEEN

    @property
    def erased_users(self) -> Path:
        """The users that `prepare` leaves out from now on."""
        return self.folder / "erased-users.txt"

    @property
    def unfinished_erasure(self) -> Path:
        """The users whose erasure has begun and not ended."""
        return self.folder / "unfinished-erasure.json"

    @property
    def log(self) -> Path:
        """The log of a generation, a Parquet file of the beginning and one of each refresh."""
        return self.folder / "log"

    @property
    def generations(self) -> Path:
        """What each `distilrec refresh` has made: run folders by their numbers, and `current`, a
        link to the one that is to be served.
        """
        return self.folder / "generations"

    @property
    def begun(self) -> Path:
        """What a refresh that makes this generation was begun with."""
        return self.folder / "begun.json"

    @property
    def full(self) -> Path:
        """A full training on the data of this generation, until it is measured."""
        return self.folder / "full"

    @property
    def refreshed(self) -> Path:
        """What came of the refresh that made this generation."""
        return self.folder / "refresh.json"

    @property
    def costs(self) -> Path:
        """Time and memory of each stage."""
        return self.folder / "costs.json"

    @property
    def comparison(self) -> Path:
        """The comparison on the test part."""
        return self.folder / "comparison.json"

    @property
    def report(self) -> Path:
        """The comparison as a page."""
        return self.folder / "report.html"

    def model(self, name: str) -> Path:
        """Return the folder of a trained model by its name: STUDENT, BASELINE or another one."""
        return self._found(name)

    def checkpoint(self, name: str) -> Path:
        """Return the folder of an unfinished training, absolute for workers."""
        return (self.checkpoints / name).absolute()

    def _found(self, name: str) -> Path:
        """Return a folder by its name, or by its former name where only that is there."""
        folder, former = self.folder / name, self.folder / _FORMER.get(name, name)
        return former if former.exists() and not folder.exists() else folder
