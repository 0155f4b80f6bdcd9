"""From the [data] section of a run to the source of its data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from distilrec.data.erased import ErasedUsers, read_erased_users
from distilrec.data.fetch import DATASETS, fetch_dataset
from distilrec.data.paths import name_of_path
from distilrec.data.pseudonyms import pseudonym_key
from distilrec.data.schema import Schema
from distilrec.data.source import Source, Table
from distilrec.runs import erasure
from distilrec.runs.config import DataConfig
from distilrec.runs.folder import Run


def source_of(run: Run) -> Source:
    """Return the source of a run's data set; a public one is fetched where it is not there yet.

    Raises ConfigError, DataError and DownloadError.
    """
    data = run.config.data
    key, erased = _key(data), _erased_users(data, run.folder)
    log, users, items = _tables(run)
    targets = run.config.targets
    return Source(log, _schema(data), users, items, key, erased, data.checks, targets)


def new_log(run: Run, path: object) -> Source:
    """Return a new log, to be read like the log of the run. path: or a frame. Raises
    ConfigError.
    """
    data = run.config.data
    log = Table(path, data.columns, data.text())
    return Source(
        log,
        _schema(data),
        pseudonym_key=_key(data),
        checks=data.checks,
        targets=run.config.targets,
    )


def keeps_log(run: Run) -> bool:
    """Return whether a run keeps its log, to be refreshed from its source: by default where the
    source grows, and the run can be refreshed.
    """
    config, source = run.config, run.config.data.interactions
    if source is None or source == str(run.places.log.absolute()):  # of a generation
        return False
    if config.data.pseudonym_key is not None or config.privacy is not None:
        return False
    if config.refresh.keep_log is not None:
        return config.refresh.keep_log
    return not (isinstance(source, str) and Path(source).is_file())


def name_of(data: DataConfig) -> str:
    """Return what the data set of a run is called."""
    if data.dataset or data.name:
        return data.dataset or data.name
    source = data.interactions or "log"
    return name_of_path(Path(source)) if isinstance(source, str) else source.short_name


def with_files(data: DataConfig, say: Callable[[str], None] = lambda line: None) -> DataConfig:
    """Return the section with the files of a public data set in place of its name.

    say: is told what is fetched. Raises DownloadError.
    """
    if data.dataset is None:
        return data
    tables = fetch_dataset(data.dataset, say)
    return msgspec.structs.replace(
        data,
        dataset=None,
        interactions=str(tables / "interactions.csv"),
        users=str(tables / "users.csv"),
        items=str(tables / "items.csv"),
        schema=DATASETS[data.dataset].schema,
        name=data.dataset,
    )


def _tables(run: Run) -> tuple[Table, Table | None, Table | None]:
    """Return the log, and the tables of users and items."""
    data = run.config.data
    if data.dataset is not None:
        folder = fetch_dataset(data.dataset, run.progress.say)
        return (
            Table(folder / "interactions.csv"),
            Table(folder / "users.csv"),
            Table(folder / "items.csv"),
        )
    text = data.text()
    return (
        Table(data.interactions, data.columns, text),
        None
        if data.users is None
        else Table(data.users, data.user_columns, data.user_format or text),
        None
        if data.items is None
        else Table(data.items, data.item_columns, data.item_format or text),
    )


def _schema(data: DataConfig) -> Schema:
    return data.schema if data.dataset is None else DATASETS[data.dataset].schema


def _key(data: DataConfig) -> bytes | None:
    """Return the key of the pseudonyms, where the configuration asks for them. Raises
    ConfigError.
    """
    return None if data.pseudonym_key is None else pseudonym_key(data.pseudonym_key)


def _erased_users(data: DataConfig, folder: Path) -> ErasedUsers:
    """Return the users in the file of erased users, and those that were erased from this run.
    Raises DataError.
    """
    before = tuple(erasure.erased_before(folder))
    if data.erased_users is None:
        return ErasedUsers(others=before)
    named = read_erased_users(Path(data.erased_users))
    if data.erased_users_must_exist:
        return ErasedUsers(
            tuple(user for user in named if user not in before), before, data.erased_users
        )
    return ErasedUsers((), (*named, *before), data.erased_users)
