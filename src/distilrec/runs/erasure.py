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

import numpy as np

from distilrec.bundle.format import erase_user, read_bundle
from distilrec.data.dataset import PREPARED, Dataset, load_dataset
from distilrec.data.erased import listed, read_erased_users, unknown_user
from distilrec.errors import DataError
from distilrec.features.texts import unpack_texts
from distilrec.files import read_json, remove, sync_folder, write_json, write_whole

LIST = "erased-users.txt"  # whom `prepare` leaves out from now on
_NOTE = "unfinished-erasure.json"
_MADE_AGAIN = ("labels", "checkpoints", "tuning")
_BUNDLES = ("bundle", "bundle-alone")


def erased_before(run: Path) -> list[str]:
    """Returns the users that were erased from a run, or are to be."""
    users = read_erased_users(run / LIST) if (run / LIST).is_file() else ()
    return list(dict.fromkeys([*users, *unfinished_erasures(run)]))


def unfinished_erasures(run: Path) -> list[str]:
    """Returns the users whose erasure was begun and not finished."""
    path = run / _NOTE
    if not path.is_file():
        return []
    fix = f"forget the users again that were forgotten last (see {LIST}), after deleting {_NOTE}"
    return read_json(path, list[str], error=DataError, fix=fix)


def forget(run: Path, names: Sequence[str], *, missing_ok: bool = False) -> list[str]:
    """Takes a user out of a run; returns what was done, nothing where the user is out already.

    names: the id, and the pseudonym where there is one; the first that the run knows is taken.
    missing_ok: put the user on the list even if the run knows none of them. Raises UnknownUserError
    otherwise.
    """
    waiting, before = unfinished_erasures(run), erased_before(run)
    data = load_dataset(run / "data") if (run / "data" / PREPARED.file).is_file() else None
    there = set() if data is None else set(data.info.user_ids)
    for bundle in _bundles(run):
        history = read_bundle(bundle).history
        there |= set(unpack_texts("users", history)) if history else set()
    name = next((each for each in names if each in there or each in before), None)
    if name is None and not missing_ok:
        raise unknown_user(
            names[0],
            f"the run {run}",
            "check the id; with --missing-ok, `prepare` leaves the user out from now on in any "
            "case",
        )
    name = names[-1] if name is None else name
    if name in there and name not in waiting:
        waiting = [*waiting, name]
        write_json(run / _NOTE, waiting)
    _list(run, [*before, name])
    return _erase(run, data, waiting) if waiting else []


def finish(run: Path) -> list[str]:
    """Finishes what an interrupted `forget` has left; returns what was done."""
    waiting = unfinished_erasures(run)
    if not waiting:
        return []
    _list(run, erased_before(run))
    data = load_dataset(run / "data") if (run / "data" / PREPARED.file).is_file() else None
    return _erase(run, data, waiting)


def _list(run: Path, users: Sequence[str]) -> None:
    content = listed(list(dict.fromkeys(users)))
    if not (run / LIST).is_file() or (run / LIST).read_bytes() != content:
        write_whole(run / LIST, content)


def _erase(run: Path, data: Dataset | None, users: Sequence[str]) -> list[str]:
    lines = []
    for name in _MADE_AGAIN:
        if (run / name).exists():
            shutil.rmtree(run / name)
            lines.append(f"{name}: deleted, made again when needed")
    scores = [
        *(run / "teacher").rglob("scores.json"),
        *(run / "teacher").rglob("scores*.safetensors"),
    ]
    scores += (run / "teacher").rglob("scores*.safetensors.new")
    if remove(scores):
        lines.append("teacher: scores deleted, read again by `distilrec train`")
    sync_folder(run)
    if data is not None:
        gone = np.flatnonzero(np.isin(data.info.user_ids, users))
        if len(gone):
            rows = int((data.offsets[gone + 1] - data.offsets[gone]).sum())
            made_from = PREPARED.made_from(run / "data") or ""
            data.select_users(np.delete(np.arange(data.users), gone)).save(run / "data", made_from)
            lines.insert(0, f"prepared data: {rows:,} rows erased")
        PREPARED.tidy(run / "data")
    if (run / "data" / "parts").exists():  # of a preparation that was killed
        shutil.rmtree(run / "data" / "parts")
    for name in _BUNDLES:
        if not (run / name / "manifest.json").is_file():  # of an export that was killed
            remove(
                [
                    *(run / name).glob("history*.safetensors"),
                    *(run / name).glob("history*.safetensors.new"),
                ]
            )
    for bundle in _bundles(run):
        if any([erase_user(bundle, user) for user in users]):
            lines.append(f"{bundle}: history erased")
    remove([run / _NOTE])
    if lines:
        lines.append(
            "a comparison and models of this run are of the data before: train them again with "
            "`distilrec run`"
        )
    return lines


def _bundles(run: Path) -> list[Path]:
    return [run / name for name in _BUNDLES if (run / name / "manifest.json").is_file()]
