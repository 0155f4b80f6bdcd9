"""From a log and its feature tables to a prepared data set, part by part: by this process or by the
workers of a cluster.

The log is never in memory as a whole: a part of about a million rows is, and what the data set
holds of each row (16 bytes).
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.checks import DataCheck
from distilrec.data.cleaning import ROWS_PER_PART, Cleaning, CleanLog, clean_log
from distilrec.data.clocks import why_no_times
from distilrec.data.context import fit_context
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, DatasetInfo
from distilrec.data.dataset import derived_features as derived_names
from distilrec.data.erased import ErasedUsers, as_erased
from distilrec.data.features import fit_encoder, title_of
from distilrec.data.kept import keep_log
from distilrec.data.lines import TextFormat
from distilrec.data.order import (
    FoundOrder,
    Ties,
    WantedOrder,
    check_order,
    check_wanted,
    draw_order,
    find_order,
    find_ties,
    shuffle_ties,
)
from distilrec.data.parts import Encoding, Part, Rows, encode_parts, split_parts, training_counts
from distilrec.data.readers import Log
from distilrec.data.schema import Feature, Schema
from distilrec.data.source import SideRows, Source, Table, read_sides
from distilrec.data.splits import Split
from distilrec.errors import ConfigError, NotEnoughDataError
from distilrec.features.attributes import collect_attributes
from distilrec.features.encoding import FeatureEncoder
from distilrec.offsets import offsets_of
from distilrec.targets import ROLES, Targets
from distilrec.workers import InProcess, Workers

OnStep = Callable[[str, int, int], None]
_SHOWN_TYPES = 8  # of event types in a note


def prepare_dataset(  # noqa: PLR0913 - a public name, whose arguments stay as they are
    log: object,
    schema: Schema,
    *,
    users: object | None = None,
    items: object | None = None,
    name: str = "log",
    cleaning: Cleaning | None = None,
    split: Split | None = None,
    columns: Sequence[str] | None = None,
    user_columns: Sequence[str] | None = None,
    item_columns: Sequence[str] | None = None,
    text: TextFormat | None = None,
    user_text: TextFormat | None = None,
    item_text: TextFormat | None = None,
    pseudonym_key: bytes | None = None,
    derived_features: bool = True,
    order: WantedOrder = "auto",
    draw: int = 0,
    ties: Ties = "auto",
    checks: Sequence[DataCheck] = (),
    erased_users: Sequence[object] | ErasedUsers = (),
    targets: Targets | None = None,
    workers: Workers | None = None,
    scratch: Path | None = None,
    rows_per_part: int = ROWS_PER_PART,
    on_step: OnStep = lambda what, done, total: None,
) -> Dataset:
    """Read, clean, split and encode a log and its feature tables.

    log, users, items: a path, a polars frame or a pandas frame; `*columns` name the fields of files
    without a header. text: encoding and quotes of files of text; user_text, item_text: of the
    feature tables, where they differ.
    pseudonym_key: users of the log and of the table get pseudonyms with this key
    (`distilrec.data.pseudonyms`).
    order: whether the events of a user have an order in time; "auto" finds out. draw: which events
    are held out where they have none (`distilrec.data.order`). ties: the order of a user's events
    at the same time, that of the rows, a drawn one or none; "auto" finds out whether there is one.
    checks: what must hold for the columns of the tables. erased_users: whose rows are left out, by
    id or pseudonym; ids that match no user of the log are an error, but for `ErasedUsers.others`.
    targets: which events are to be predicted, which only inform and which are negative; without it
    all are to be predicted.
    derived_features: popularity, and sales volume where there are weights, become features of the
    items; they get other names (`popularity_in_log`) where the schema has columns of these names.
    workers: who works on the parts, this process if left out; the data set is the same. scratch: a
    folder for the parts, a temporary one if left out; it is removed, and workers on other machines
    must see it. rows_per_part: what is in memory at once, about 400 bytes for each row. on_step: is
    called with what is being done, finished parts and all parts.
    Raises UnknownUserError for ids of `erased_users`, ConfigError for a split that the order of the
    log does not allow, and the DataErrors of the readers, the cleaning and the encoders.
    """
    if not isinstance(erased_users, ErasedUsers):
        erased_users = ErasedUsers(as_erased(erased_users))
    source = Source(
        Table(log, columns, text),
        schema,
        None if users is None else Table(users, user_columns, user_text or text),
        None if items is None else Table(items, item_columns, item_text or text),
        pseudonym_key,
        erased_users,
        tuple(checks),
        targets,
    )
    choices = Choices(
        name, cleaning or Cleaning(), split or Split(), derived_features, order, draw, ties
    )
    circumstances = Circumstances(workers or InProcess(), scratch, rows_per_part, on_step)
    return prepare_source(source, choices, circumstances)


@dataclass(frozen=True)
class Choices:
    """What a preparation makes of a source."""

    name: str = "log"
    """What the data set is called."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    """What counts as noise in the log."""
    split: Split = field(default_factory=Split)
    """Which events are for training, validation and test."""
    derived_features: bool = True
    """Whether popularity and sales volume become features of the items."""
    order: WantedOrder = "auto"
    """Whether the events of a user have an order in time."""
    draw: int = 0
    """Which events are held out where they have none, and which order shuffled ties have."""
    ties: Ties = "auto"
    """The order of events of a user at the same time: that of the rows, a drawn one, or none."""

    def __post_init__(self) -> None:
        check_wanted(self.order, self.draw, self.ties)


@dataclass(frozen=True)
class Circumstances:
    """How a preparation runs; the data set is the same."""

    workers: Workers = field(default_factory=InProcess)
    """Who works on the parts."""
    scratch: Path | None = None
    """Folder for the parts, which all workers see; a temporary one by default."""
    rows_per_part: int = ROWS_PER_PART
    """Rows in memory together."""
    on_step: OnStep = lambda what, done, total: None
    """Called with the name of the step, finished parts and all parts."""
    keep: Path | None = None
    """Folder that gets the log as it was read, without the rows of erased users, to be refreshed
    from its source later.
    """


def prepare_source(source: Source, choices: Choices, circumstances: Circumstances) -> Dataset:
    """Return the data set of a source: `prepare_dataset` with grouped arguments."""
    sides = read_sides(source)
    with _folder(circumstances.scratch) as folder:
        log = source.log.open(folder)
        clean, erased = _clean(log, source, choices, circumstances, folder)
        if circumstances.keep is not None:
            keep_log(log, source.schema, source.erased.all(), circumstances.keep)
        order = _in_order(clean, source, choices, circumstances)
        meanings = [] if source.targets is None else [*_target_notes(clean, source.targets)]
        parts = split_parts(
            clean,
            source.schema,
            choices.split,
            circumstances.workers,
            lambda done, total: circumstances.on_step("split", done, total),
            source.targets,
        )
        words = _vocabulary(log.name, sides, parts, source.targets)
        context = fit_context(source.schema.context, [part.context for part in parts])
        rows = _encode(clean, words, context, parts, circumstances)
    table = _item_table(source.schema, sides, words, derived=choices.derived_features)
    users = _Users.of(parts)
    notes = (*sides.notes, *erased, *order.notes, *meanings, *_notes(sides, users, words, rows))
    named = source.schema.timestamp is not None
    if named and (untold := why_no_times(rows.times, named=named)):
        notes = (*notes, f"{untold}: no model is told the time")
    return _dataset(
        source,
        choices,
        sides,
        _Prepared(clean, order, parts, words, context, rows, table, users, notes),
    )


def _clean(
    log: Log, source: Source, choices: Choices, circumstances: Circumstances, folder: Path
) -> tuple[CleanLog, list[str]]:
    """Return the clean log, and what is to be said of the erased users."""
    clean = clean_log(
        log,
        source,
        choices.cleaning,
        folder,
        circumstances.workers,
        circumstances.rows_per_part,
        lambda done, total: circumstances.on_step("clean", done, total),
    )
    return clean, source.erased.check(clean.erased, source.pseudonym_key)


def _in_order(
    clean: CleanLog, source: Source, choices: Choices, circumstances: Circumstances
) -> FoundOrder:
    """Return whether the log has an order; the events of one without are put into a drawn order,
    and so are those at the same time where these have none.
    """
    timed, workers = source.schema.timestamp is not None, circumstances.workers
    found = find_order(clean, choices.order, choices.split, timed=timed, workers=workers)
    ties, why = choices.ties, f'data.ties is "{choices.ties}"'
    if ties == "auto" and found.order == "time" and timed:
        ties, why = find_ties(clean, workers), f"{why}, and users choose items again"
    elif ties == "auto":
        ties = "rows"
    check_order(found.order, choices.draw, ties)

    def on_step(done: int, total: int) -> None:
        circumstances.on_step("draw an order", done, total)

    if found.order == "none" and choices.split.kind == "leave-one-out":
        draw_order(clean, choices.draw, timed=timed, workers=workers, on_step=on_step)
        return found
    if found.order == "time" and ties == "rows":
        return found
    why = why if found.order == "time" else 'data.order is "none"'
    note = shuffle_ties(clean, choices.draw, why, timed=timed, workers=workers, on_step=on_step)
    if ties == "unordered":
        return FoundOrder("ties", (*found.notes, f"{note}, and is another one in each epoch"))
    return replace(found, notes=(*found.notes, note))


@dataclass(frozen=True)
class _Vocabulary:
    """The ids of the items, those with training rows (`warm`) first, and the event types.

    counts: training rows and their weight of the warm items, in this order.
    """

    item_ids: tuple[str, ...]
    warm: int
    event_types: tuple[str, ...]
    counts: pl.DataFrame


def _vocabulary(
    log_name: str, sides: SideRows, parts: Sequence[Part], targets: Targets | None
) -> _Vocabulary:
    """Return the items and event types of the training rows and the item table, never of validation
    or test rows; and the types that `targets` names, which a service may get.
    """
    counts = training_counts(parts)
    if counts.is_empty():
        raise NotEnoughDataError(
            f"{log_name}: no row is left for training",
            fix="use a smaller validation and test share",
        )
    warm = counts["item_id"].to_list()
    has_rows = set(warm)
    types = set().union(*(part.event_types for part in parts))
    types = (types | set(targets.roles() if targets else ())) - {"unknown"}
    return _Vocabulary(
        (*warm, *(item for item in sides.items if item not in has_rows)),
        len(warm),
        ("unknown", *sorted(types)),
        counts,
    )


def _encode(
    clean: CleanLog,
    words: _Vocabulary,
    context: FeatureEncoder,
    parts: Sequence[Part],
    circumstances: Circumstances,
) -> Rows:
    encoding = Encoding(
        clean,
        tuple(part.trains == 0 for part in parts),
        pl.Series(words.item_ids, dtype=pl.String),
        words.event_types,
        context,
    )
    return encode_parts(
        encoding,
        parts,
        circumstances.workers,
        lambda done, total: circumstances.on_step("encode", done, total),
    )


@dataclass(frozen=True)
class _ItemTable:
    """One row an item, with the features that are derived from the log."""

    features: tuple[Feature, ...]
    rows: list[dict[str, object]]


def _item_table(
    schema: Schema, sides: SideRows, words: _Vocabulary, *, derived: bool
) -> _ItemTable:
    popularity, volume = derived_names(schema)
    added = (popularity, *((volume,) if schema.weight else ())) if derived else ()
    taken = {feature.name for feature in schema.item_columns}
    for feature in added:
        if feature.name in taken:
            raise ConfigError(
                f"the schema names an item column {feature.name!r}, as a feature that is derived "
                "from the log",
                fix="rename that column, or set derived_features = false",
                parameter="derived_features",
            )
    rows = [dict(sides.items.get(item, {})) for item in words.item_ids]
    for feature, column in zip(added, ("count", "volume"), strict=False):
        for row in rows:
            row[feature.name] = 0.0
        for row, value in zip(rows, words.counts[column], strict=False):
            row[feature.name] = float(value)
    return _ItemTable((*schema.item_features, *added), rows)


@dataclass(frozen=True)
class _Users:
    """The users of all parts, those without training rows last, and where their rows end.

    offsets: (users + 1,); train_end, validation_end: (users,).
    """

    ids: tuple[str, ...]
    warm: int
    offsets: NDArray[np.int64]
    train_end: NDArray[np.int64]
    validation_end: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> _Users:
        trains = np.concatenate([part.trains for part in parts])
        order = np.argsort(trains == 0, kind="stable")
        sizes = np.concatenate([part.sizes for part in parts])[order]
        validations = np.concatenate([part.validations for part in parts])[order]
        offsets = offsets_of(sizes)
        ids = tuple(pl.concat([part.user_ids for part in parts]).gather(order).to_list())
        begins = offsets[:-1]
        return cls(
            ids, int((trains > 0).sum()), offsets, begins + trains[order], begins + validations
        )


def _notes(sides: SideRows, users: _Users, words: _Vocabulary, rows: Rows) -> Iterator[str]:
    """Yield what a report should say about users and items without rows or features."""
    for table, ids, what in (
        (sides.users, users.ids, "user"),
        (sides.items, words.item_ids, "item"),
    ):
        if table and (missing := sum(entity not in table for entity in ids)):
            lacks = f"have no row in the {what} table: features unknown"
            yield f"{missing:,} {what}s of the log {lacks}"
    if unknown := int((rows.items == UNKNOWN_ITEM).sum()):
        yield (
            f"{unknown:,} validation or test rows hold items that no training row and no table "
            "knows"
        )
    if cold := len(words.item_ids) - words.warm:
        yield f"{cold:,} items have no training row: they are ranked by their features alone"
    if cold := len(users.ids) - users.warm:
        yield f"{cold:,} users have no training row: cold users"


def _target_notes(clean: CleanLog, targets: Targets) -> Iterator[str]:
    """Yield how many rows are targets, inform, and are negative, and what [targets] does not name.
    Raises NotEnoughDataError where no row is a target.
    """
    counts: Counter[str] = Counter()
    for part in clean.parts:
        counts.update(pl.read_parquet(part, columns=["event_type"])["event_type"].to_list())
    roles = targets.roles()
    for role, what in zip(ROLES, ("are targets", "only inform", "are negative"), strict=True):
        named = {name: counts[name] for name, known in roles.items() if known == role}
        if role == "target" and not any(named.values()):
            raise NotEnoughDataError(
                f"no row of the log is a target; its event types are: {', '.join(sorted(counts))}",
                fix="correct the names or limits in [targets]",
            )
        if named:
            yield f"{sum(named.values()):,} rows {what}: {_counted(named)}"
    if others := {name: count for name, count in counts.items() if name not in roles}:
        yield (
            f"{sum(others.values()):,} rows have event types that [targets] does not name, and "
            f"only inform: {_counted(others)}"
        )
    for event in targets.events:
        if not any(counts[name] for name in event.roles()):
            yield f"[targets] names the event type {event.event_type!r}, of which there is no row"


def _counted(types: Mapping[str, int]) -> str:
    """Return event types with their numbers of rows, the most frequent ones, in words."""
    ordered = sorted(types.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{name} {count:,}" for name, count in ordered[:_SHOWN_TYPES]]
    more = len(ordered) - len(shown)
    return ", ".join([*shown, *([f"and {more:,} more types"] if more else [])])


@dataclass(frozen=True)
class _Prepared:
    """What the steps of a preparation have made."""

    clean: CleanLog
    order: FoundOrder
    parts: Sequence[Part]
    words: _Vocabulary
    context: FeatureEncoder
    rows: Rows
    table: _ItemTable
    users: _Users
    notes: tuple[str, ...]


def _dataset(source: Source, choices: Choices, sides: SideRows, made: _Prepared) -> Dataset:
    schema, users, words, table = source.schema, made.users, made.words, made.table
    nothing: dict[str, object] = {}
    user_rows = [sides.users.get(user, nothing) for user in users.ids]
    user_encoder = fit_encoder(user_rows[: users.warm], schema.user_features)
    item_encoder = fit_encoder(table.rows[: words.warm], table.features)
    described = (*table.features, *schema.item_attributes)
    return Dataset(
        info=DatasetInfo(
            name=choices.name,
            user_ids=users.ids,
            item_ids=words.item_ids,
            titles=tuple(title_of(sides.items.get(item), item) for item in words.item_ids),
            warm_users=users.warm,
            warm_items=words.warm,
            event_types=words.event_types,
            user_encoder=user_encoder,
            item_encoder=item_encoder,
            split=choices.split,
            schema=schema,
            cleaning_report=made.clean.report,
            notes=made.notes,
            repeats=any(part.repeats for part in made.parts),
            order=made.order.order,
            targets=source.targets,
            context_encoder=made.context,
        ),
        offsets=users.offsets,
        train_end=users.train_end,
        validation_end=users.validation_end,
        items=made.rows.items,
        events=made.rows.events,
        times=made.rows.times,
        context=made.rows.context if schema.context else None,
        user_features=user_encoder.encode_rows(user_rows),
        item_features=item_encoder.encode_rows(table.rows),
        attributes=collect_attributes(
            {
                feature.name: (feature.kind, [row.get(feature.name) for row in table.rows])
                for feature in described
                if feature.kind not in ("text", "vector")
            },
            len(words.item_ids),
            {feature.name: feature.separator for feature in described if feature.kind == "multi"},
        ),
    )


@contextmanager
def _folder(scratch: Path | None) -> Iterator[Path]:
    """Yield an empty folder, which is deleted afterwards."""
    if scratch is None:
        with tempfile.TemporaryDirectory(prefix="distilrec-") as folder:
            yield Path(folder)
        return
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch.absolute()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
