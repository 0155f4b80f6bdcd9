"""Your own teacher: a file of scores, or a function. Everything downstream is the same as for a
teacher trained here.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from distilrec.data.columns import as_ids
from distilrec.data.dataset import Dataset, Histories
from distilrec.data.readers import read_table
from distilrec.errors import ColumnMissingError, ConfigError, TeacherError
from distilrec.files import RecordKind
from distilrec.networks.batches import Batch, histories_at
from distilrec.offsets import offsets_of
from distilrec.settings import Count, Settings
from distilrec.teachers.teacher import Answer, Cost

ScoreFunction = Callable[[Histories], NDArray[np.float32]]
_FLOOR_GAP = 2.0  # an item that is not in a user's list stands so far below the last one that is
_CHUNK = 256
_NAMED = 3  # how many offenders a message names


class ScoresConfig(Settings, frozen=True, tag="scores", tag_field="kind"):
    """A file of scores as the teacher, one line for each user and item, with either a column of
    scores or one of ranks.

    Scores are taken as logits: a softmax over a user's scores should be the teacher's belief. Ranks
    become logits of -log2(rank + 1), the discounts of NDCG.
    """

    file: str
    """Parquet or CSV file."""
    user_id: str = "user_id"
    """Column with the user."""
    item_id: str = "item_id"
    """Column with the item."""
    score: str | None = None
    """Column with the score; higher is better."""
    rank: str | None = None
    """Column with the rank; 1 is the best."""

    def __post_init__(self) -> None:
        if (self.score is None) == (self.rank is None):
            raise ConfigError(
                "the teacher's scores file needs either a column of scores or one of ranks",
                fix='set score = "score" or rank = "rank" in the [teacher] section',
                parameter="teacher",
            )


class FunctionConfig(Settings, frozen=True, tag="function", tag_field="kind"):
    """A Python function as the teacher (see `function_teacher`)."""

    function: str
    """The text `module:name` of a function that gets the data set and returns the scoring function.
    """
    per: Literal["event", "user"] = "event"
    """Whether it is asked for every event or once for each user."""
    version: str = "1"
    """To be changed when the function answers differently than before."""
    max_history: Count = 200
    """Latest events of a user that the model looks at."""


class UserScores:
    """Scores of some items for every user, (user, item, score), minus the user's highest; all other
    items stand below them.

    offsets: (users + 1,) int64; items: (n,) int32; values: (n,) float32.
    """

    per_user = True
    state_dim = 0
    max_history = 1

    def __init__(
        self,
        offsets: NDArray[np.int64],
        items: NDArray[np.int32],
        values: NDArray[np.float32],
        dataset: Dataset,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.offsets, self.items, self.values, self.notes = offsets, items, values, notes
        self.cost = Cost()
        self.fingerprint = dataset.fingerprint()
        digest = hashlib.sha256(self.fingerprint.encode())
        for array in (offsets, items, values):
            digest.update(array.tobytes())
        self.identity = digest.hexdigest()[:16]
        self._catalogue_size = dataset.catalogue_size

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        out = np.empty((len(histories), self._catalogue_size), np.float32)
        for k, user in enumerate(histories.users):
            rows = slice(self.offsets[user], self.offsets[user + 1])
            # A user without scores (none with training rows is) gets the same score for everything.
            out[k] = self.values[rows].min() - _FLOOR_GAP if rows.stop > rows.start else 0.0
            out[k, self.items[rows]] = self.values[rows]
        return out

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        users = batch.users.cpu().numpy()
        nothing = np.zeros(0, np.int32)
        histories = Histories(users, np.zeros(len(users) + 1, np.int64), nothing, nothing)
        return Answer(torch.from_numpy(self.scores(histories)[:, :items])[window.cpu()])


def read_scores(config: ScoresConfig, dataset: Dataset) -> UserScores:
    """Return the teacher of a scores file. Raises FileMissingError, ColumnMissingError, and
    TeacherError for scores that are NaN, doubled, of other users or items, or missing for a user.
    """
    return user_scores(read_table(config.file), dataset, config, str(config.file))


def user_scores(
    table: object,
    dataset: Dataset,
    config: ScoresConfig | None = None,
    source: str = "the teacher's scores",
) -> UserScores:
    """Return a teacher from a table (polars or pandas frame) of user, item and score or rank;
    raises as `read_scores` does.
    """
    frame = _valid_scores(read_table(table), config or ScoresConfig(file="", score="score"), source)
    users = {user: position for position, user in enumerate(dataset.info.user_ids)}
    warm_items = dataset.info.item_ids[: dataset.info.warm_items]
    items = {item: position for position, item in enumerate(warm_items)}
    of_log = frame.filter(pl.col("user").is_in(list(users)) & pl.col("item").is_in(list(items)))
    _need_all_users(frame, of_log, dataset, source)
    notes = []
    if dropped := frame.height - of_log.height:
        notes.append(
            f"{source}: {dropped:,} of {frame.height:,} lines are about users or items without "
            "training rows"
        )
    # The difference first: float32 has no room for it beside a large score
    of_log = of_log.with_columns(
        value=pl.col("value") - pl.col("value").max().over("user"),
        user=pl.col("user").replace_strict(users, return_dtype=pl.Int64),
        item=pl.col("item").replace_strict(items, return_dtype=pl.Int32),
    ).sort("user", "item")
    counts = np.bincount(of_log["user"].to_numpy(), minlength=dataset.users)
    return UserScores(
        offsets_of(counts),
        of_log["item"].to_numpy().astype(np.int32),
        of_log["value"].to_numpy().astype(np.float32),
        dataset,
        tuple(notes),
    )


def _valid_scores(frame: pl.DataFrame, config: ScoresConfig, source: str) -> pl.DataFrame:
    """Return the lines of a table of scores as `user`, `item` and `value`; the value of a rank r is
    -log2(r + 1). Raises ColumnMissingError, and TeacherError for lines that cannot be used.
    """
    column = config.score or config.rank or ""
    for name in (config.user_id, config.item_id, column):
        if name not in frame.columns:
            raise ColumnMissingError(
                f"{source} has no column {name!r}; it has {', '.join(frame.columns)}",
                fix="name the columns in the [teacher] section: user_id, item_id, and score or "
                "rank",
                file=source,
                column=name,
            )
    user_ids, item_ids = (as_ids(frame[name], source) for name in (config.user_id, config.item_id))
    no_ids = user_ids.values.is_null() | item_ids.values.is_null()
    _refuse(
        frame.select(user=config.user_id, item=config.item_id).filter(no_ids),
        f"have no valid id in {config.user_id!r} or {config.item_id!r}",
        "give every line a user and an item of the log",
        source,
    )
    frame = pl.DataFrame(
        {
            "user": user_ids.values,
            "item": item_ids.values,
            "value": frame[column].cast(pl.Float64, strict=False),
        }
    )
    _refuse(
        frame.filter(pl.col("value").is_null() | ~pl.col("value").is_finite()),
        f"hold no finite number in column {column!r}",
        "give every line a finite number; leave out items that have none",
        source,
    )
    _refuse(
        frame.filter(pl.struct("user", "item").is_duplicated()),
        "name a user and an item twice",
        "give each item of a user one score",
        source,
    )
    if config.rank is not None:
        _refuse(
            frame.filter(pl.col("value") < 1), "hold a rank below 1", "count ranks from 1", source
        )
        frame = frame.with_columns(value=-(pl.col("value") + 1).log(2))
    return frame


def _need_all_users(
    frame: pl.DataFrame, of_log: pl.DataFrame, dataset: Dataset, source: str
) -> None:
    """Raise TeacherError where users with training rows have no scores.

    of_log: the lines of `frame` whose user and item are in the log.
    """
    if of_log.is_empty():
        raise TeacherError(
            f"{source} and the log have no user and item in common: the ids do not match "
            f"({_some(frame['user'].unique().to_list())} there, {_some(dataset.info.user_ids)} in "
            "the log)",
            fix="use the ids of the log in the scores file",
            file=source,
        )
    users = dataset.info.user_ids[: dataset.info.warm_users]
    scored = set(of_log["user"].unique().to_list())
    missing = [user for user in users if user not in scored]
    if missing:
        raise TeacherError(
            f"{source} has no scores for {len(missing):,} of the {len(users):,} users of the log: "
            f"{_some(missing)}",
            fix="score every user, or leave these users out of the log",
            file=source,
            users=missing[:_NAMED],
        )


def _refuse(bad: pl.DataFrame, what: str, fix: str, source: str) -> None:
    if not bad.is_empty():
        first = bad.row(0, named=True)
        raise TeacherError(
            f"{source}: {bad.height:,} lines {what}, the first for user {first['user']!r}, item "
            f"{first['item']!r}",
            fix=fix,
            file=source,
        )


def _some(names: object) -> str:
    listed = list(names)  # type: ignore[call-overload]
    return ", ".join(map(repr, listed[:_NAMED])) + (" …" if len(listed) > _NAMED else "")


class FunctionTeacher:
    """A scoring function as a teacher; see `function_teacher`."""

    state_dim = 0

    def __init__(
        self,
        function: ScoreFunction,
        dataset: Dataset,
        identity: str,
        per: Literal["event", "user"],
        max_history: int,
    ) -> None:
        self._function, self._dataset = function, dataset
        self.per_user = per == "user"
        self.max_history = max_history
        self.identity = hashlib.sha256(
            f"{identity} {per} {dataset.fingerprint()}".encode()
        ).hexdigest()[:16]
        self.cost = Cost()

    def answer(
        self, batch: Batch, window: torch.Tensor, position: torch.Tensor, items: int
    ) -> Answer:
        users = batch.users[window].cpu().numpy()
        rows = batch.rows[window, position].cpu().numpy()
        if len(rows) and rows.min() < 0:  # histories that are in no data set
            histories = histories_at(batch, window, position, self._dataset.catalogue_size)
        else:
            histories = self._dataset.histories(users, rows)
        scores = self.scores(histories)
        return Answer(torch.from_numpy(scores[:, :items]))

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        parts = [
            self._checked(histories.select(start, start + _CHUNK))
            for start in range(0, len(histories), _CHUNK)
        ]
        return (
            np.concatenate(parts)
            if parts
            else np.zeros((0, self._dataset.catalogue_size), np.float32)
        )

    def _checked(self, histories: Histories) -> NDArray[np.float32]:
        scores = np.asarray(self._function(_without_cold(histories, self._dataset.info.warm_items)))
        if scores.dtype != np.float32:
            scores = scores.astype(np.float64)
        warm, all_items = self._dataset.info.warm_items, self._dataset.catalogue_size
        if scores.shape not in ((len(histories), warm), (len(histories), all_items)):
            raise TeacherError(
                f"the teacher's function gave an array of shape {scores.shape} for "
                f"{len(histories)} histories",
                fix="give one row per history and one column per item of dataset.info.item_ids "
                f"({warm:,} with training "
                f"rows, or all {all_items:,})",
            )
        if not np.isfinite(scores).all():
            row, column = np.argwhere(~np.isfinite(scores))[0]
            raise TeacherError(
                f"the teacher's function gave {scores[row, column]} for user "
                f"{self._dataset.info.user_ids[histories.users[row]]!r}, "
                f"item {self._dataset.info.item_ids[column]!r}",
                fix="give a finite number for every item",
            )
        # The differences first: float32 has no room for them beside large scores.
        scores = np.subtract(scores, scores.max(1, keepdims=True)).astype(np.float32)
        if scores.shape[1] < all_items:  # items without training rows come last
            scores = np.pad(scores, ((0, 0), (0, all_items - warm)), constant_values=0.0)
            scores[:, warm:] = scores[:, :warm].min(1, keepdims=True) - _FLOOR_GAP
        return scores


def _without_cold(histories: Histories, warm_items: int) -> Histories:
    """Return the same histories without items that have no training rows, which no model of yours
    can know.
    """
    warm = histories.items < warm_items
    if warm.all():
        return histories
    before = np.concatenate([[0], np.cumsum(warm)]).astype(np.int64)
    return Histories(
        histories.users,
        before[histories.offsets],
        histories.items[warm],
        histories.events[warm],
        None if histories.times is None else histories.times[warm],
        histories.now,
        histories.context,
    )


def function_teacher(
    function: ScoreFunction,
    dataset: Dataset,
    *,
    identity: str,
    per: Literal["event", "user"] = "event",
    max_history: int = 200,
) -> FunctionTeacher:
    """Return any function as a teacher.

    function: gets Histories (positions in `dataset.info.user_ids` and `dataset.info.item_ids`; only
    items with training rows) and gives logits, (batch, items) floats, one column per item in the
    order of `dataset.info.item_ids`.
    identity: a name for these weights; labels are extracted again when it changes.
    per: "event" asks for the history before every training event; "user" asks once, after the whole
    training history.
    """
    return FunctionTeacher(function, dataset, identity, per, max_history)


def import_function(config: FunctionConfig, dataset: Dataset) -> FunctionTeacher:
    """Return the teacher of a "module:name" setting. Raises ConfigError when there is no such
    function.
    """
    module, _, name = config.function.partition(":")
    try:
        if "" not in sys.path:  # the folder of the command, as for `python -m`
            sys.path.insert(0, "")
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ConfigError(
            f"the teacher's function {config.function!r} cannot be imported: {problem}",
            fix='use "module:function" of an importable module, for example teachers.mine:make',
            parameter="teacher.function",
        ) from None
    return function_teacher(
        make(dataset),
        dataset,
        identity=f"{config.function} {config.version}",
        per=config.per,
        max_history=config.max_history,
    )


class _AboutScores(msgspec.Struct, frozen=True):
    fingerprint: str


SAVED_SCORES = RecordKind(
    "scores.json",
    _AboutScores,
    ("scores",),
    1,
    TeacherError,
    what="scores of a teacher",
    fix="run `distilrec train` first",
    again="run `distilrec train` again",
)


def save_user_scores(teacher: UserScores, folder: Path) -> None:
    """Write `scores.json` and the arrays that it names: later stages do not need the file that they
    came from.
    """
    arrays: dict[str, NDArray[Any]] = {
        "offsets": teacher.offsets,
        "items": teacher.items,
        "values": teacher.values,
    }
    SAVED_SCORES.write(folder, _AboutScores(teacher.fingerprint), {"scores": arrays})


def load_user_scores(folder: Path, dataset: Dataset) -> UserScores:
    """Return what `save_user_scores` wrote. Raises FileMissingError and TeacherError."""
    saved = SAVED_SCORES.read(folder)
    if saved.about.fingerprint != dataset.fingerprint():
        raise TeacherError(
            f"the scores in {folder} are of another data set",
            fix="run `distilrec train` again",
            file=str(folder),
        )
    path, arrays = saved.path("scores"), saved.arrays("scores")
    if set(arrays) != {"offsets", "items", "values"}:
        raise SAVED_SCORES.damaged(
            path, f"holds {', '.join(sorted(arrays))} instead of offsets, items and values"
        )
    offsets, items, values = arrays["offsets"], arrays["items"], arrays["values"]
    fits = (
        len(offsets) == dataset.users + 1
        and len(items) == len(values) == offsets[-1]
        and offsets[0] == 0
    )
    if not fits or (np.diff(offsets) < 0).any() or items.max(initial=0) >= dataset.info.warm_items:
        raise SAVED_SCORES.damaged(path, "does not fit the users and items of the data set")
    return UserScores(offsets, items, values, dataset)
