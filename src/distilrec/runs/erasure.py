"""Taking a user out of a run folder: out of the prepared data, what was made from them, and the
histories of the bundles.

Who is to be forgotten is written down first, in `unfinished-erasure.json`, and crossed out last. A
process that was killed in between leaves that note: the next command on the run, whichever it is,
finishes the work before it does anything else.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from distilrec.bundle.format import erase_user, read_bundle
from distilrec.data.dataset import PREPARED, Dataset, load_dataset
from distilrec.data.erased import listed, read_erased_users
from distilrec.data.schema import Schema
from distilrec.errors import DataError, unknown_user
from distilrec.files import read_json, remove, replacing, sync_folder, write_json, write_whole
from distilrec.runs.places import Places


class _Data(msgspec.Struct, frozen=True):
    schema: Schema = Schema()


class _Config(msgspec.Struct, frozen=True):
    """What of a configuration says where the users are in the log."""

    data: _Data


def erased_before(run: Path) -> list[str]:
    """Return the users that were erased from a run, or are to be."""
    places = Places(run)
    users = read_erased_users(places.erased_users) if places.erased_users.is_file() else ()
    return list(dict.fromkeys([*users, *unfinished_erasures(run)]))


def unfinished_erasures(run: Path) -> list[str]:
    """Return the users whose erasure was begun and not finished."""
    path = Places(run).unfinished_erasure
    if not path.is_file():
        return []
    fix = (
        f"forget the users again that were forgotten last (see {Places(run).erased_users.name}), "
        f"after deleting {path.name}"
    )
    return read_json(path, list[str], error=DataError, fix=fix)


def forget(run: Path, names: Sequence[str], *, missing_ok: bool = False) -> list[str]:
    """Take a user out of a run; return what was done, nothing where the user is out already.

    names: the id, and the pseudonym where there is one; the first that the run knows is taken.
    missing_ok: put the user on the list even if the run knows none of them. Raises UnknownUserError
    otherwise.
    """
    waiting, before = unfinished_erasures(run), erased_before(run)
    data = _prepared(run)
    known_users = set() if data is None else set(data.info.user_ids)
    for bundle in _bundles(run):
        history = read_bundle(bundle).history
        known_users |= set(history.users) if history else set()
    name = next((name for name in names if name in known_users or name in before), None)
    if name is None and not missing_ok:
        raise unknown_user(
            names[0],
            f"the run {run}",
            "check the id; with --missing-ok, `prepare` leaves the user out from now on in any "
            "case",
        )
    name = names[-1] if name is None else name
    if name in known_users and name not in waiting:
        waiting = [*waiting, name]
        write_json(Places(run).unfinished_erasure, waiting)
    _list(run, [*before, name])
    return _erase(run, data, waiting) if waiting else []


def finish(run: Path) -> list[str]:
    """Finish what an interrupted `forget` has left; return what was done."""
    waiting = unfinished_erasures(run)
    if not waiting:
        return []
    _list(run, erased_before(run))
    data = _prepared(run)
    return _erase(run, data, waiting)


def _prepared(run: Path) -> Dataset | None:
    data = Places(run).data
    return load_dataset(data) if (data / PREPARED.file).is_file() else None


def _list(run: Path, users: Sequence[str]) -> None:
    path, content = Places(run).erased_users, listed(list(dict.fromkeys(users)))
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)


def _erase(run: Path, data: Dataset | None, users: Sequence[str]) -> list[str]:
    """Take users out of a run whose erasure is written down; return what was done."""
    places = Places(run)
    lines = _delete_what_is_made_again(places)
    if data is not None:
        lines = [*_erase_from_data(places, data, users), *lines]
    if places.parts.exists():  # of a preparation that was killed
        shutil.rmtree(places.parts)
    lines += _erase_from_log(places, users)
    for bundle in places.bundles:
        if not _is_bundle(bundle):  # of an export that was killed
            remove(
                [
                    *bundle.glob("history*.safetensors"),
                    *bundle.glob("history*.safetensors.new"),
                ]
            )
    for bundle in _bundles(run):
        if any([erase_user(bundle, user) for user in users]):
            lines.append(f"{bundle}: history erased")
    remove([places.unfinished_erasure])
    if lines:
        lines.append(
            "a comparison and models of this run are of the data before: train them again with "
            "`distilrec run`"
        )
    return lines


def _delete_what_is_made_again(places: Places) -> list[str]:
    lines = []
    made_again = (places.labels, places.checkpoints, places.tuning, places.sweep, places.full)
    for folder in made_again:
        if folder.exists():
            shutil.rmtree(folder)
            lines.append(f"{folder.name}: deleted, made again when needed")
    scores = [
        *places.teacher.rglob("scores.json"),
        *places.teacher.rglob("scores*.safetensors"),
        *places.teacher.rglob("scores*.safetensors.new"),
    ]
    if remove(scores):
        lines.append("teacher: scores deleted, read again by `distilrec train`")
    sync_folder(places.folder)
    return lines


def _erase_from_data(places: Places, data: Dataset, users: Sequence[str]) -> list[str]:
    lines = []
    erased = np.flatnonzero(np.isin(data.info.user_ids, users))
    if len(erased):
        rows = int((data.offsets[erased + 1] - data.offsets[erased]).sum())
        made_from = PREPARED.made_from(places.data) or ""
        data.select_users(np.delete(np.arange(data.users), erased)).save(places.data, made_from)
        lines.append(f"prepared data: {rows:,} rows erased")
    PREPARED.tidy(places.data)
    return lines


def _erase_from_log(places: Places, users: Sequence[str]) -> list[str]:
    """Take users out of the log of a generation, whose files are written again; return what was
    done.
    """
    if not places.log.is_dir() or not places.config.is_file():
        return []
    config = read_json(places.config, _Config, error=DataError, fix="restore it from a backup")
    user, erased = pl.col(config.data.schema.user_id), 0
    for file in sorted(places.log.glob("*.parquet")):
        frame = pl.read_parquet(file)
        kept = frame.filter(~user.cast(pl.String).is_in(list(users)).fill_null(value=False))
        if kept.height < frame.height:
            with replacing(file) as new:
                kept.write_parquet(new)
        erased += frame.height - kept.height
    return [f"{places.log}: {erased:,} rows erased"] if erased else []


def _is_bundle(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _bundles(run: Path) -> list[Path]:
    return [bundle for bundle in Places(run).bundles if _is_bundle(bundle)]
