"""One run, described: a TOML file with a section per stage. Unknown keys are errors, never ignored."""

from __future__ import annotations

from pathlib import Path

import msgspec

from distilrec.data.checks import DataCheck
from distilrec.data.cleaning import Cleaning
from distilrec.data.fetch import DATASETS
from distilrec.data.lines import TextFormat
from distilrec.data.schema import Schema
from distilrec.data.splits import Split
from distilrec.distill.distillation import DistillationConfig
from distilrec.errors import ConfigError
from distilrec.export.export import BundleConfig
from distilrec.labels.extract import LabelConfig
from distilrec.networks.build import StudentConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.privacy.accounting import PrivateTrainingConfig
from distilrec.settings import Seed, Settings, read_settings
from distilrec.teachers.build import EnsembleConfig, MemberConfig, TeacherConfig
from distilrec.teachers.external import ScoresConfig
from distilrec.training.options import TrainingConfig


class DataConfig(Settings, frozen=True):
    """Either the name of a public data set, or files with their schema. Paths are relative to the TOML file.

    A path may be a folder or a pattern such as `events-*.csv.gz`. `*columns` name the fields of files without a header line.
    encoding, quote, escape: how files of text are written; user_format, item_format: the same of the feature tables, where
    they differ. pseudonym_key: the name of an environment variable that
    holds a key; users then get pseudonyms, and their ids go nowhere. derived_features: popularity (and sales volume) of
    the items as features. checks: what must hold for the tables. erased_users: a file with one user id a line, whose rows
    are left out. erased_users_must_exist: an id in that file that matches no user of the log is an error.
    """

    dataset: str | None = None
    interactions: str | None = None
    users: str | None = None
    items: str | None = None
    columns: tuple[str, ...] | None = None
    user_columns: tuple[str, ...] | None = None
    item_columns: tuple[str, ...] | None = None
    encoding: str | None = None
    quote: str | None = None
    escape: str | None = None
    user_format: TextFormat | None = None
    item_format: TextFormat | None = None
    schema: Schema = Schema()
    name: str = ""
    pseudonym_key: str | None = None
    derived_features: bool = True
    checks: tuple[DataCheck, ...] = ()
    erased_users: str | None = None
    erased_users_must_exist: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text()
        if (self.dataset is None) == (self.interactions is None):
            raise ConfigError(
                "the [data] section needs either `dataset` or `interactions`",
                fix='for example dataset = "ml-100k", or interactions = "log.csv" with a [data.schema] section',
                parameter="data",
            )
        if self.dataset is not None and self.dataset not in DATASETS:
            raise ConfigError(
                f"no public data set {self.dataset!r} is known",
                fix=f"choose one of: {', '.join(DATASETS)}",
                parameter="data.dataset",
            )

    def text(self) -> TextFormat:
        """How files of text are written. Raises ConfigError for what is no encoding or no character."""
        return TextFormat(self.encoding, self.quote, self.escape)


class RunConfig(Settings, frozen=True):
    """All choices of a run. teacher_seed: of the teacher and its labels, where it is not `seed`.

    privacy: the student is trained with differential privacy, without labels; None trains it by distillation.
    """

    data: DataConfig
    cleaning: Cleaning = Cleaning()
    split: Split = Split()
    teacher: TeacherConfig = TransformerConfig()
    teacher_training: TrainingConfig = TrainingConfig()
    labels: LabelConfig = LabelConfig()
    student: StudentConfig = RecurrentConfig()
    student_training: TrainingConfig = TrainingConfig(epochs=40, patience=40, learning_rate=4e-3)
    distillation: DistillationConfig = DistillationConfig()
    bundle: BundleConfig = BundleConfig()
    privacy: PrivateTrainingConfig | None = None
    seed: Seed = 0
    teacher_seed: Seed | None = None


def read_config(path: Path | str) -> RunConfig:
    """A run from a TOML file, its data paths made absolute. Raises FileMissingError and ConfigError."""
    path = Path(path)
    config = read_settings(path, RunConfig, fix="check the path of the configuration file")
    found = {
        name: str((path.parent / value).resolve())
        for name in ("interactions", "users", "items", "erased_users")
        if (value := getattr(config.data, name)) is not None
    }
    data = msgspec.structs.replace(config.data, **found)
    return msgspec.structs.replace(config, data=data, teacher=_absolute(config.teacher, path.parent))


def _absolute(teacher: TeacherConfig, folder: Path) -> TeacherConfig:
    """The same teacher with the paths of its files relative to the configuration file made absolute."""
    match teacher:
        case ScoresConfig():
            return msgspec.structs.replace(teacher, file=str((folder / teacher.file).resolve()))
        case EnsembleConfig():
            members = [
                MemberConfig(_absolute(each.model, folder), each.training, each.seed)  # type: ignore[arg-type]
                for each in teacher.members
            ]
            return EnsembleConfig(tuple(members))
        case _:
            return teacher
