"""The record of which models saw which user: what an erasure has to answer for after rows and
histories are gone.

Every export adds one file to `seen/` in the run folder, `MODEL_VERSION.safetensors`: when it was
made, of which teacher and data set, and a salted hash of every user whose rows the training read.
It stays where the training ran. The bundle holds nothing of it, so that it tells strangers nothing
about users.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distilrec.errors import DataError, FileMissingError
from distilrec.files import write_whole
from distilrec.ids import as_id
from distilrec.runs.places import SEEN, Places

_META = "seen"


class SeenBy(msgspec.Struct, frozen=True):
    """A model that was trained on a user's rows. exported: seconds since 1970; private: with
    differential privacy.
    """

    model_version: str
    exported: float
    dataset: str
    dataset_fingerprint: str
    teacher: str
    private: bool
    salt: str


def record_users(
    run: Path,
    users: Iterable[str],
    *,
    model_version: str,
    dataset: str,
    dataset_fingerprint: str,
    teacher: str,
    private: bool,
) -> None:
    """Write the record of one exported model; a model that has one keeps it."""
    path = Places(run).seen / f"{model_version}.safetensors"
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    salt = secrets.token_hex(16)
    about = SeenBy(model_version, time.time(), dataset, dataset_fingerprint, teacher, private, salt)
    digests = np.sort(np.array([_digest(user, salt) for user in users], np.uint64))
    write_whole(
        path, save({"users": digests}, metadata={_META: msgspec.json.encode(about).decode()})
    )


def models_that_saw(runs: Path, user_id: str) -> list[SeenBy]:
    """Return every recorded model below a folder that was trained on rows of this user, the oldest
    first.

    Raises InvalidIdError, FileMissingError and DataError. The chance that somebody else has the
    same hash is one in 2^64 for each user of a record.
    """
    if not runs.is_dir():
        raise FileMissingError(
            f"there is no folder {runs}", fix="give the folder that holds the runs", file=str(runs)
        )
    user_id = as_id(user_id, "user_id")
    models = [about for about, users in _records(runs) if _digest(user_id, about.salt) in users]
    return sorted(models, key=lambda about: about.exported)


def _records(runs: Path) -> Iterator[tuple[SeenBy, NDArray[np.uint64]]]:
    for path in sorted(runs.rglob(f"{SEEN}/*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                about = msgspec.json.decode(file.metadata()[_META], type=SeenBy)
                yield about, file.get_tensor("users")
        except (SafetensorError, msgspec.MsgspecError, KeyError, TypeError, OSError) as problem:
            raise DataError(
                f"{path} is not a readable record: {problem}",
                fix="restore it from a backup",
                file=str(path),
            ) from None


def _digest(user: str, salt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt} {user}".encode()).digest()[:8], "big")
