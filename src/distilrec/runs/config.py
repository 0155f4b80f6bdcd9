"""One run, described: a TOML file with a section per stage. Unknown keys are errors,
never ignored.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from distilrec.data.checks import DataCheck
from distilrec.data.cleaning import Cleaning
from distilrec.data.fetch import DATASETS
from distilrec.data.lines import TextFormat
from distilrec.data.order import Ties, WantedOrder, check_wanted
from distilrec.data.queries import Query
from distilrec.data.remote import is_remote
from distilrec.data.schema import Schema
from distilrec.data.splits import Split
from distilrec.data.tables import DeltaTable, IcebergTable
from distilrec.distill.distillation import DistillationConfig
from distilrec.distill.sizes import SweepConfig
from distilrec.errors import ConfigError
from distilrec.export.search import BundleConfig
from distilrec.labels.extract import LabelConfig
from distilrec.networks.build import StudentConfig, student_class
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.privacy.accounting import PrivateTrainingConfig
from distilrec.settings import (
    Count,
    NotNegative,
    Positive,
    Seed,
    Settings,
    Share,
    ZeroOrMore,
    read_settings,
)
from distilrec.targets import Targets
from distilrec.teachers.build import EnsembleConfig, TeacherConfig
from distilrec.teachers.external import ScoresConfig
from distilrec.training.options import TrainingConfig


class DataConfig(Settings, frozen=True):
    """The tables of a run: the name of a public data set, or files with their schema. Paths are
    relative to the TOML file.
    """

    dataset: str | None = None
    """Name of a public data set (`ml-100k`, `ml-1m`), in place of files."""
    interactions: str | Query | DeltaTable | IcebergTable | None = None
    """The log: a file (.csv .tsv .txt .dat .parquet .jsonl .inter), a folder of these, also with
    partitions, a pattern, one of these on object
    storage (`s3://bucket/log/*.parquet`), or, in `[data.interactions]`, a query on a database or a
    Delta or Iceberg table.
    """
    users: str | Query | DeltaTable | IcebergTable | None = None
    """Features of the users, in the same forms."""
    items: str | Query | DeltaTable | IcebergTable | None = None
    """Titles, features and attributes of the items, in the same forms."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of a log without a header line."""
    user_columns: tuple[str, ...] | None = None
    """Names of the columns of a user table without a header line."""
    item_columns: tuple[str, ...] | None = None
    """Names of the columns of an item table without a header line."""
    encoding: str | None = None
    """Encoding of files of text; by their byte order mark, or UTF-8, by default."""
    quote: str | None = None
    """The character around cells that hold a separator; an empty text for none; by the kind of file
    by default.
    """
    escape: str | None = None
    """The character before a quote inside a quoted cell; a doubled quote by default."""
    user_format: TextFormat | None = None
    """How the user table is written, where that differs from the log."""
    item_format: TextFormat | None = None
    """How the item table is written, where that differs from the log."""
    schema: Schema = Schema()
    """Which column of a table is what."""
    name: str = ""
    """What the run and its report are called; the name of the log file by default."""
    pseudonym_key: str | None = None
    """Name of an environment variable that holds a key; users then get pseudonyms, and their ids go
    nowhere.
    """
    derived_features: bool = True
    """Whether popularity, and sales volume where there is a weight, are features of the items."""
    order: WantedOrder = "auto"
    """Whether the events of a user have an order in time: that of the times, or of the rows where
    there are none ("time"), or none that is known or should be learned ("none"). "auto" says "none"
    where there is no column of times, or where nearly all users have all their events at the same
    time.
    """
    draw: ZeroOrMore = 0
    """Which events are held out where there is no order, and the order of shuffled ties; each draw
    is another one.
    """
    ties: Ties = "auto"
    """The order of a user's events at the same time: that of the rows; a drawn one ("shuffled"),
    to see how much a result owes to the order of the rows; or none ("unordered"), as in a basket
    that is paid for as a whole: it is drawn, and each epoch of a training draws another one. "auto"
    says "unordered" where at least half of the events have the time of the one before of their user
    and users choose items again, and "rows" otherwise.
    """
    checks: tuple[DataCheck, ...] = ()
    """What must hold for the tables."""
    erased_users: str | None = None
    """File with one user id or pseudonym a line, whose rows are left out and counted."""
    erased_users_must_exist: bool = True
    """An id in that file that matches no user of the log is an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text()
        if (self.dataset is None) == (self.interactions is None):
            raise ConfigError(
                "the [data] section needs either `dataset` or `interactions`",
                fix='for example dataset = "ml-100k", or interactions = "log.csv" with a '
                "[data.schema] section",
                parameter="data",
            )
        if self.dataset is not None and self.dataset not in DATASETS:
            raise ConfigError(
                f"no public data set {self.dataset!r} is known",
                fix=f"choose one of: {', '.join(DATASETS)}",
                parameter="data.dataset",
            )

    def text(self) -> TextFormat:
        """Return how files of text are written. Raises ConfigError for an unknown encoding, and for
        a quote or an escape that is not one character.
        """
        return TextFormat(self.encoding, self.quote, self.escape)


class BaselineConfig(Settings, frozen=True):
    """The student without distillation, with which the distilled one is compared, where it has
    settings of its own.
    """

    student: StudentConfig | None = None
    """The model, of the size of `[student]`; `[student]` by default."""
    training: TrainingConfig | None = None
    """How it is trained; `[student_training]` by default."""


class TunedConfig(Settings, frozen=True):
    """What was spent on the choice of these settings, as `distilrec tune` writes it; the report
    says it.
    """

    student: ZeroOrMore = 0
    """Trials of the search for the settings of the distilled student."""
    baseline: ZeroOrMore = 0
    """Trials of the search for those of the student without distillation."""


class RefreshConfig(Settings, frozen=True):
    """How `distilrec refresh` trains on new rows, beginning with the weights of the last time."""

    epochs: Count = 8
    """Epochs of the student, and no more than those of the whole training."""
    teacher_epochs: Count = 3
    """Epochs of each network of the teacher, and no more than those of the whole training."""
    learning_rate: Positive = 1.0
    """Highest learning rate, as a share of that of the whole training."""
    replay: Share = 0.05
    """Share of the users all of whose training rows are trained again, drawn for each refresh. Of
    the others the new rows alone are.
    """
    refit: bool = True
    """Whether members of the teacher in closed form are fitted again on all rows, with the ridge
    that they have. Without it they stay as they are, and only networks learn of new items. The
    weights of an ensemble stay in both cases.
    """
    earlier_weight: Share = 0.0
    """Weight of the student of the last time as a second teacher of the users without new training
    rows, against forgetting; the teacher has the rest. 0 is off.
    """
    keep: ZeroOrMore = 0
    """Number of the latest generations that stay once a new one counts; the one that counts and the
    one before it, for a rollback, always do. 0 keeps all.
    """
    overlap: NotNegative = 86_400.0
    """Seconds before the newest time of the log from which on `--from-source` asks for rows. Rows
    that come later than this are not seen.
    """
    keep_log: bool | None = None
    """Whether the run folder keeps the log as it was read, which `--from-source` needs; by default
    where the log is a query, a table, a folder or a pattern. One more copy on the disk.
    """


class RunConfig(Settings, frozen=True):
    """All choices of a run."""

    data: DataConfig
    """The tables."""
    cleaning: Cleaning = Cleaning()
    """What counts as noise in the log."""
    split: Split = Split()
    """Which events are for training, validation and test."""
    teacher: TeacherConfig | None = None
    """The model that the student learns from; by default a transformer, and a recurrent network
    where the log has repeats or no order.
    """
    teacher_training: TrainingConfig | None = None
    """How the teacher's networks are trained. Without the section as its defaults say, and with a
    learning rate of 4e-3 where the recurrent network is the teacher by default.
    """
    closed_form: bool | None = None
    """Whether EASE and the linear transition model join the teacher, as an ensemble; by default
    they join one that is trained here, up to 100,000 items, and not one of your own.
    """
    labels: LabelConfig = LabelConfig()
    """What is stored of what the teacher says."""
    student: StudentConfig = RecurrentConfig()
    """The model that is served."""
    student_training: TrainingConfig = TrainingConfig(
        epochs=40, patience=40, learning_rate=4e-3, window=100
    )
    """How the student is trained, with and without distillation."""
    baseline: BaselineConfig = BaselineConfig()
    """The student without distillation, where it has settings of its own."""
    tuned: TunedConfig = TunedConfig()
    """How many trials of a search chose the settings of the students."""
    distillation: DistillationConfig = DistillationConfig()
    """The losses of distillation."""
    bundle: BundleConfig = BundleConfig()
    """How the best items are found by the served student."""
    privacy: PrivateTrainingConfig | None = None
    """Trains the student with differential privacy and without labels; by distillation where the
    section is left out.
    """
    sweep: SweepConfig = SweepConfig()
    """The students of `distilrec sweep`."""
    refresh: RefreshConfig = RefreshConfig()
    """How `distilrec refresh` trains."""
    seed: Seed = 0
    """Everything random follows from it."""
    teacher_seed: Seed | None = None
    """Seed of the teacher and its labels, to train several students of one teacher; `seed` by
    default.
    """
    targets: Targets | None = None
    """Which events are to be predicted, which only inform, and which are negative; without the
    section every event is to be predicted.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_wanted(self.data.order, self.data.draw, self.data.ties)
        if self.refresh.keep_log and self.data.pseudonym_key is not None:
            raise ConfigError(
                "a run with pseudonyms keeps no log: it would hold the ids",
                fix="remove keep_log",
                parameter="refresh.keep_log",
            )
        if self.baseline.student is not None:
            _need_same_size(self.student, self.baseline.student)


def _need_same_size(student: StudentConfig, baseline: StudentConfig) -> None:
    """Raise ConfigError where the student without distillation is of another kind or size than the
    distilled one.
    """
    free = {"dropout", *student_class(student).space}
    for name, value in msgspec.to_builtins(student).items():
        baseline_value = msgspec.to_builtins(baseline).get(name)
        if name not in free and baseline_value != value:
            raise ConfigError(
                f"the student without distillation has {name} = {baseline_value!r}, the distilled "
                f"one {value!r}: what is compared is one size",
                fix=f"set {name} = {json.dumps(value)} in [baseline.student]",
                parameter=f"baseline.student.{name}",
            )


def read_config(path: Path | str) -> RunConfig:
    """Return a run from a TOML file, its data paths made absolute. Raises FileMissingError and
    ConfigError.
    """
    path = Path(path)
    config = read_settings(path, RunConfig, fix="check the path of the configuration file")
    sources = {
        name: _source_in(path.parent, value)
        for name in ("interactions", "users", "items", "erased_users")
        if (value := getattr(config.data, name)) is not None
    }
    data = msgspec.structs.replace(config.data, **sources)
    return msgspec.structs.replace(
        config, data=data, teacher=_absolute(config.teacher, path.parent)
    )


def _source_in(
    folder: Path, source: str | Query | DeltaTable | IcebergTable
) -> str | Query | DeltaTable | IcebergTable:
    """Return the same source with its path relative to the configuration file made absolute."""
    if not isinstance(source, str):
        return source.relative_to(folder)
    return source if is_remote(source) else str((folder / source).resolve())


def _absolute(teacher: TeacherConfig | None, folder: Path) -> TeacherConfig | None:
    """Return the same teacher with the paths of its files relative to the configuration file made
    absolute.
    """
    match teacher:
        case ScoresConfig():
            return msgspec.structs.replace(teacher, file=str((folder / teacher.file).resolve()))
        case EnsembleConfig():
            members = [
                msgspec.structs.replace(member, model=_absolute(member.model, folder))
                for member in teacher.members
            ]
            return EnsembleConfig(tuple(members))
        case _:
            return teacher
