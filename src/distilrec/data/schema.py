"""Which column of a table is what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from zoneinfo import ZoneInfo

from distilrec.errors import ColumnMissingError, ConfigError
from distilrec.settings import Settings

FeatureKind = Literal["categorical", "multi", "numeric", "text", "vector"]
UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
"""Units of numbers that count time from 1970, and how many of them a second has."""


class Feature(Settings, frozen=True):
    """One column of side information. `separator` splits the text of a `multi` or `vector` column.

    A `vector` is a list of numbers, as many in every row, such as the embedding of a text or a picture.
    """

    name: str
    kind: FeatureKind
    separator: str = "|"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.separator:
            raise ConfigError(
                f"the separator of {self.name!r} is empty",
                fix="leave it out, or give a character",
                parameter="separator",
            )


class Schema(Settings, frozen=True):
    """The columns of the interaction log and of the optional user and item tables.

    `timestamp=None` means that the order of the rows is the order in time. timestamp_format: "seconds", "milliseconds",
    "microseconds" or "nanoseconds" since 1970, "yyyymmdd", or a strptime pattern such as "%d/%m/%Y"; left out, it is found
    from all rows. timezone: of times that name none, such as "Europe/Berlin"; UTC if left out. `user_key` and `item_key`
    name the id columns of the two feature tables; `title` is the column of the item table that people read.
    `item_attributes` are columns that no model learns from, but that answers can be filtered by, as they can by the item
    features.
    """

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = None
    timestamp_format: str | None = None
    timezone: str | None = None
    event_type: str | None = None
    weight: str | None = None
    user_key: str | None = None
    item_key: str | None = None
    title: str | None = None
    user_features: tuple[Feature, ...] = ()
    item_features: tuple[Feature, ...] = ()
    item_attributes: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        told = self.timestamp_format
        if told is not None and told not in UNITS and told != "yyyymmdd" and "%" not in told:
            raise ConfigError(
                f"timestamp_format is {told!r}",
                fix=f'use {", ".join(UNITS)}, yyyymmdd, or a strptime pattern such as "%d/%m/%Y %H:%M"',
                parameter="timestamp_format",
            )
        if self.timezone is not None and not _is_zone(self.timezone):
            raise ConfigError(
                f"no time zone {self.timezone!r} is known",
                fix='use a name such as "UTC" or "Europe/Berlin"',
                parameter="timezone",
            )
        item_columns = (*self.item_features, *self.item_attributes)
        for declared, features in (
            ("user_features", self.user_features),
            ("item_features (with item_attributes)", item_columns),
        ):
            names = [feature.name for feature in features]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"{declared} declares {twice[0]!r} twice", fix="keep one of them", parameter=twice[0])


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def need_column(columns: Sequence[str], column: str, source: str) -> None:
    """Raises ColumnMissingError that lists the columns there are."""
    if column not in columns:
        raise ColumnMissingError(
            f"{source} has no column {column!r}; it has: {', '.join(columns)}",
            fix="correct the column name in the schema",
            file=source,
            column=column,
        )
