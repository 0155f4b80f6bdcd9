"""Files that are written whole, and records: files that belong together, replaced together.

A file is never changed where it is. A new one is written beside it (`NAME.new`), is forced to the
disk, and takes the place of the old one by a rename: a reader finds the old file or the new one,
whenever the writer is killed.

A record is one JSON file that names its parts with their hashes and sizes. The parts are written
first, under names that hold a hash of their content, so that they never replace those of the old
record; then the JSON file is replaced, the one moment at which the new state takes the place of the
old one; then parts that the record no longer names are removed. A reader opens the JSON file and
checks every part against it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from distilrec.errors import DistilrecError, FileMissingError, FolderHeldError, StorageError

T = TypeVar("T")
Arrays = Mapping[str, NDArray[Any]]
_NEW = ".new"
_LAST_BYTES = 2**26  # of a file of lines
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_DIGITS = 16  # of the hash in the name of a part


@contextmanager
def replacing(path: Path, *, durable: bool = True, own: str = "") -> Iterator[Path]:
    """Yield the path at which to write the new file; at the end of the block it takes the place of
    `path`.

    durable: the new file is on the disk before it takes that place, and the rename before the block
    ends. own: a name of this process, where several may write the same file at the same time.
    """
    new = path.with_name(f"{path.name}{own}{_NEW}")
    try:
        yield new
        if durable:
            _sync(new)
        new.replace(path)
    except BaseException as problem:
        new.unlink(missing_ok=True)
        if not isinstance(problem, OSError) and (refused := refused_by_system(problem, path)):
            raise refused from None
        raise
    if durable:
        sync_folder(path.parent)


def refused_by_system(problem: BaseException, path: object) -> StorageError | None:
    """Return the error for a file that the system refuses, whichever library says so: the disk is
    full, a limit is met, it can only be read, or this user may not. Return None for any other
    problem.
    """
    number = getattr(problem, "errno", None)
    if number is None:  # polars and safetensors give the number in their text
        found = re.search(r"\(os error (\d+)\)", str(problem))
        full = "Invalid thrift: transport error" in str(problem)  # of the head of a Parquet page
        number = int(found[1]) if found else errno.ENOSPC if full else None
    if number in _FORBIDDEN:
        path = getattr(problem, "filename", None) or path
        return StorageError(
            f"{path} cannot be opened: {os.strerror(number)}",
            fix="let the user who runs this read and write it (chown, chmod)",
            file=str(path),
        )
    if number not in _REFUSED:
        return None
    return StorageError(
        f"{path} cannot be written: {os.strerror(number)}",
        fix="make room on that disk, or check its permissions; the same command goes on",
        file=str(path),
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; a process that has the old one open keeps it."""
    with replacing(path) as new:
        new.write_bytes(data)


def append_durably(path: Path, lines: Iterable[bytes]) -> None:
    """Append lines to a file, which only its owner may read, and force them to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(handle)


def last_lines(path: Path) -> list[bytes]:
    """Return the last lines of a file that lines are appended to, which is made if needed. A last
    line that a killed process has left unfinished is removed.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "rb+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
        *lines, rest = file.read().split(b"\n")
        if rest:
            file.seek(-len(rest), os.SEEK_END)
            file.truncate()
    sync_folder(path.parent)
    return lines


def write_json(path: Path, content: object) -> None:
    """Write JSON that people can read, whole or not at all."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(content)))


def read_json(path: Path, kind: type[T], *, error: type[DistilrecError], fix: str) -> T:
    """Return the content of a JSON file. Raises `error`, which names the file, and StorageError
    where this user may not read it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as problem:
        raise refused_by_system(problem, path) or error(
            f"{path} cannot be read: {problem}", fix=fix, file=str(path)
        ) from None


def read_arrays(path: Path, *, error: type[DistilrecError], fix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a safetensors file. Raises `error`, which names the file, and
    StorageError where this user may not read it.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as problem:
        raise refused_by_system(problem, path) or error(
            f"{path} cannot be read: {problem}", fix=fix, file=str(path)
        ) from None


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*content: object) -> str:
    """Return a hash of what something is made from."""
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def remove(paths: Iterable[Path], keep: Iterable[Path] = ()) -> int:
    """Remove files durably, apart from those in `keep`; return their number."""
    paths_to_remove = sorted(set(paths) - set(keep))
    for path in paths_to_remove:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths_to_remove}:
        sync_folder(folder)
    return len(paths_to_remove)


def unfinished(folder: Path) -> list[Path]:
    """Return the new files in a folder that a killed process has left behind."""
    return list(folder.glob(f"*{_NEW}"))


def sync_folder(folder: Path) -> None:
    """Make the renames and removals in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # a file system that cannot, and need not
            raise
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder for one process at a time. wait: until another one is done; otherwise that is a
    FolderHeldError.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise FolderHeldError(
                f"another process works in {folder}",
                fix="wait until it is done, or stop it",
                file=str(folder),
            ) from None
        except OSError:  # a file system without locks
            if wait:
                raise
        yield
    finally:
        os.close(handle)


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a record. name: in the folder of the record, never a path."""

    name: Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*\Z")]
    sha256: str
    bytes: int


class _Content(msgspec.Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """The JSON file of a record. made_from: a key of what it was made from; about: whatever is no
    array.
    """

    format_version: int
    made_from: str
    parts: dict[str, Part]
    about: T


class _Version(msgspec.Struct, frozen=True):
    format_version: int = 0


@dataclass(frozen=True)
class Record(Generic[T]):
    """A record that has been read, and whose parts are as it says."""

    folder: Path
    kind: RecordKind[T]
    about: T
    made_from: str
    parts: dict[str, Part]

    def path(self, part: str) -> Path:
        """Return the file of a part. Raises the error of this kind of record where it names no such
        part.
        """
        if part not in self.parts:
            raise self.kind.damaged(self.folder / self.kind.file, f"names no part {part!r}")
        return self.folder / self.parts[part].name

    def arrays(self, part: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a part."""
        return read_arrays(
            self.path(part), error=self.kind.error, fix=self.kind.repair(self.folder)
        )


@dataclass(frozen=True)
class RecordKind(Generic[T]):
    """One kind of record: its JSON file, what that says besides the parts, its format number and
    how errors speak of it.

    arrays: the names of its parts that hold arrays; what: "prepared data"; again: how to make it
    again, for messages, with "{folder}"; fix: what to do where there is none.
    """

    file: str
    about: type[T]
    arrays: tuple[str, ...]
    version: int
    error: type[DistilrecError]
    what: str
    fix: str
    again: str

    def write(
        self,
        folder: Path,
        about: T,
        arrays: Mapping[str, Arrays] | None = None,
        *,
        files: Iterable[Path] = (),
        made_from: str = "",
    ) -> None:
        """Replace the record in a folder, which is made if needed.

        arrays: of every part, by its name; files: further parts, which are on the disk already.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: _write_part(folder, name, some) for name, some in (arrays or {}).items()}
        for file in files:
            parts[file.name] = Part(file.name, hash_of(file), file.stat().st_size)
        sync_folder(folder)
        write_json(folder / self.file, _Content(self.version, made_from, parts, about))
        self.tidy(folder)

    def tidy(self, folder: Path) -> int:
        """Remove what an earlier or a killed `write` has left beside the record; return the number
        of files.
        """
        found = [folder / f"{self.file}{_NEW}"]
        for name in self.arrays:
            found += [folder / f"{name}.safetensors", folder / f"{name}.safetensors{_NEW}"]
            found += folder.glob(f"{name}-{'[0-9a-f]' * _DIGITS}.safetensors")
        found = [path for path in found if path.exists()]
        named = (
            self._content(folder).parts.values() if found and (folder / self.file).is_file() else ()
        )
        return remove(found, [folder / part.name for part in named])

    def read(self, folder: Path) -> Record[T]:
        """Return the record in a folder, checked. Raises FileMissingError and the error of this
        kind of record.
        """
        content = self._content(folder)
        for part in content.parts.values():
            path = folder / part.name
            if not path.is_file():
                raise self.damaged(path, "is missing")
            if (size := path.stat().st_size) != part.bytes:
                raise self.damaged(path, f"has {size} bytes instead of {part.bytes}")
            if hash_of(path) != part.sha256:
                raise self.damaged(
                    path,
                    f"is not the file that {self.file} names: it is another one, or was changed",
                )
        return Record(folder, self, content.about, content.made_from, content.parts)

    def made_from(self, folder: Path) -> str | None:
        """Return the key of what the record was made from; None where there is no record that can
        be read.
        """
        try:
            return self._content(folder).made_from
        except (FileMissingError, self.error):
            return None

    def is_made(self, folder: Path, made_from: str) -> bool:
        """Return whether a folder holds a record that was made from what `made_from` is a key of:
        then it need not be made again.
        """
        return self.made_from(folder) == made_from

    def damaged(self, path: Path, problem: str) -> DistilrecError:
        """Return the error for a file of such a record."""
        return self.error(f"{path} {problem}", fix=self.repair(path.parent), file=str(path))

    def repair(self, folder: Path) -> str:
        """Return what to do about a damaged record."""
        return self.again.replace("{folder}", str(folder))

    def _content(self, folder: Path) -> _Content[T]:
        path = folder / self.file
        if not path.is_file():
            raise FileMissingError(
                f"there is no {self.what} in {folder}", fix=self.fix, file=str(path)
            )
        version = read_json(
            path, _Version, error=self.error, fix=self.repair(folder)
        ).format_version
        if version != self.version:
            upgrade = "upgrade distilrec (pip install -U distilrec), or "
            raise self.error(
                f"{path} has {f'format {version}' if version else 'no format number'}; this "
                f"distilrec reads {self.version}",
                fix=f"{upgrade if version > self.version else ''}{self.repair(folder)}",
                file=str(path),
            )
        kind: Any = _Content
        content: _Content[T] = read_json(
            path, kind[self.about], error=self.error, fix=self.repair(folder)
        )
        return content


def _write_part(folder: Path, name: str, arrays: Arrays) -> Part:
    """Write the arrays of a part under a name that holds a hash of them."""
    new = folder / f"{name}.safetensors{_NEW}"
    try:
        save_file({key: np.asarray(array, order="C") for key, array in arrays.items()}, new)
    except SafetensorError as problem:
        new.unlink(missing_ok=True)
        raise refused_by_system(problem, folder) or problem from None
    digest = hash_of(new)
    part = Part(f"{name}-{digest[:_DIGITS]}.safetensors", digest, new.stat().st_size)
    _sync(new)
    new.replace(folder / part.name)
    return part
