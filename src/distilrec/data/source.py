"""The source of a data set: a log, its feature tables, and who and what is left out of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distilrec.data.checks import DataCheck, check_table
from distilrec.data.erased import ErasedUsers
from distilrec.data.features import feature_rows
from distilrec.data.lines import TextFormat
from distilrec.data.pseudonyms import pseudonym
from distilrec.data.readers import Log, open_log
from distilrec.data.schema import Feature, Schema
from distilrec.errors import ConfigError
from distilrec.targets import Targets


@dataclass(frozen=True)
class Table:
    """A table to read."""

    source: object
    """A path, a polars frame or a pandas frame."""
    columns: Sequence[str] | None = None
    """Names of the fields of a file without a header line."""
    text: TextFormat | None = None
    """Encoding and quotes of a file of text."""

    def open(self, scratch: Path) -> Log:
        """Return the table, to be read in slices. scratch: a folder for copies of text. Raises what
        `open_log` raises.
        """
        return open_log(self.source, scratch, self.columns, self.text)


@dataclass(frozen=True)
class Source:
    """Everything that a data set is made from."""

    log: Table
    """The log of interactions."""
    schema: Schema
    """Which column of a table is what."""
    users: Table | None = None
    """Features of the users."""
    items: Table | None = None
    """Titles, features and attributes of the items."""
    pseudonym_key: bytes | None = None
    """Key of the pseudonyms of the users; without it they keep their ids."""
    erased: ErasedUsers = field(default_factory=ErasedUsers)
    """Users whose rows are left out."""
    checks: tuple[DataCheck, ...] = ()
    """What must hold for the columns of the tables."""
    targets: Targets | None = None
    """What the events mean; without it every event is to be predicted."""

    def __post_init__(self) -> None:
        for event in self.targets.by_weight if self.targets else ():
            if self.schema.weight is None:
                raise ConfigError(
                    f"[targets] divides the events of type {event.event_type!r} by their weight, "
                    "and the schema names no column of weights",
                    fix="name the column of ratings or quantities in data.schema.weight",
                    parameter="data.schema.weight",
                )


Features = dict[str, dict[str, object]]


@dataclass(frozen=True)
class SideRows:
    """The rows of the feature tables by id, and what a report should say about them."""

    users: Features
    items: Features
    notes: tuple[str, ...]


def read_sides(source: Source) -> SideRows:
    """Return the feature tables of a source, with pseudonyms where it has a key for them."""
    schema = source.schema
    users, user_notes = _read_side(
        source, "users", source.users, schema.user_key, schema.user_features, None
    )
    if source.pseudonym_key is not None:
        users = {pseudonym(user, source.pseudonym_key): row for user, row in users.items()}
    items, item_notes = _read_side(
        source, "items", source.items, schema.item_key, schema.item_columns, schema.title
    )
    return SideRows(users, items, (*user_notes, *item_notes))


def _read_side(
    source: Source,
    what: Literal["users", "items"],
    table: Table | None,
    key: str | None,
    features: Sequence[Feature],
    title: str | None,
) -> tuple[Features, list[str]]:
    """Return the rows of a feature table by id, and notes for the report."""
    if table is None:
        if features:
            raise ConfigError(
                f"the schema declares features of {what}, but there is no table of {what}",
                fix=f"give the table (data.{what}), or remove the features",
                parameter=what,
            )
        return {}, []
    path = table.source
    name = str(path) if isinstance(path, str | Path) else f"the {what} table"
    with tempfile.TemporaryDirectory(prefix="distilrec-") as folder:
        opened = table.open(Path(folder))
        read = opened.read()
    passed, broken = check_table(read, source.checks, what, name)
    left_out = [
        f"{name}: {count:,} rows left out by the check that {rule}"
        for rule, count in broken.items()
    ]
    rows, notes = feature_rows(read[passed], key, features, title, name, passed)
    return rows, [*opened.notes, *left_out, *notes]
