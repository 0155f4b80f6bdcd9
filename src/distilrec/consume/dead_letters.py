"""The file of messages that hold no event: one JSON object on a line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from distilrec.consume.messages import DeadLetter
from distilrec.errors import StorageError
from distilrec.files import append_durably, last_lines

_REMEMBERED = 10_000  # messages that may be read again after a kill


class _Id(msgspec.Struct, frozen=True):
    id: str


class DeadLetters:
    """Keeps each dead letter once, though a message is read again after a kill.

    Only the owner of the file may read it: it holds what users did. Raises StorageError where the
    file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: deque[str] = deque(maxlen=_REMEMBERED)
        with self._errors():
            self._ids += map(_id, last_lines(path))

    def keep(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Append letters, durably; return those that were not there yet."""
        known = set(self._ids) if letters else set()
        new = [letter for letter in letters if letter.id not in known]
        if new:
            with self._errors():
                append_durably(self._path, map(msgspec.json.encode, new))
            self._ids += [letter.id for letter in new]
        return new

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise StorageError(
                f"the file of dead letters {self._path} cannot be written: {problem.strerror}",
                fix="give a file in a folder that can be written (--dead-letters), on a disk that "
                "has space",
                file=str(self._path),
            ) from None


def _id(line: bytes) -> str:
    """Return the id of a letter; none where another program wrote the line."""
    try:
        return msgspec.json.decode(line, type=_Id).id
    except msgspec.MsgspecError:
        return ""
