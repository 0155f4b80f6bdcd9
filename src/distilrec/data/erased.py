"""The list of users whose rows are left out: a text file with one id or pseudonym a line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distilrec.data.lines import MARKS
from distilrec.data.pseudonyms import pseudonym
from distilrec.errors import (
    DataError,
    FileMissingError,
    InvalidIdError,
    InvalidValueError,
    UnknownUserError,
)
from distilrec.ids import SPACES, as_id

_NAMED = 5  # ids in a message


@dataclass(frozen=True)
class ErasedUsers:
    """Users whose rows are left out, by id or pseudonym. ids: those that must be in the log;
    others: those that may be gone from it already; source: names the list in messages.
    """

    ids: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    source: str = "the list of erased users"

    def all(self) -> list[str]:
        """Return every id once."""
        return list(dict.fromkeys((*self.ids, *self.others)))

    def check(self, found: Collection[str], key: bytes | None) -> list[str]:
        """Return a note for the report. Raises UnknownUserError where the log has no row of some of
        `ids`.

        found: the users of the log that are on the list, as the log names them; key: of the
        pseudonyms.
        """
        missing = [user for user in self.ids if not _names(user, key) & set(found)]
        if missing:
            listed = ", ".join(map(repr, missing[:_NAMED])) + (
                " …" if len(missing) > _NAMED else ""
            )
            raise UnknownUserError(
                f"{len(missing):,} of the {len(self.ids):,} ids in {self.source} match no user of "
                f"the log: {listed}",
                fix="correct these lines; set data.erased_users_must_exist = false where users "
                "may be gone from the log",
                file=self.source,
                users=missing[:_NAMED],
            )
        if not self.all():
            return []
        return [
            f"{len(set(found)):,} of {len(self.all()):,} users to be erased have rows in the log, "
            "which are left out"
        ]


def _names(user: str, key: bytes | None) -> set[str]:
    return {user} if key is None else {user, pseudonym(user, key)}


def as_erased(users: Iterable[object]) -> tuple[str, ...]:
    """Return the ids of users that were given from Python. Raises InvalidIdError."""
    return tuple(as_id(user, "erased user") for user in users)


def read_erased_users(path: Path) -> tuple[str, ...]:
    """Return the ids in a list, one a line, empty lines left out; quotes around an id, as in CSV,
    are removed.

    The list is UTF-8, or begins with a byte order mark that says otherwise. Raises
    FileMissingError, and DataError or InvalidValueError that names the line.
    """
    if not path.is_file():
        raise FileMissingError(
            f"{path}, the list of erased users, is not there",
            fix="make it, or correct its path",
            file=str(path),
        )
    lines = re.split(r"\r\n|\r|\n", _decoded(path))
    return tuple(
        _one(line.strip(SPACES), path, number)
        for number, line in enumerate(lines, 1)
        if line.strip(SPACES)
    )


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as problem:
        read = problem.object  # without a mark of UTF-8
        line = read[: problem.start].decode(encoding, errors="replace").count("\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {read[problem.start]:#04x} is not {encoding.upper()}",
            fix="save the list as UTF-8, for example: iconv -f LATIN1 -t UTF-8 LIST > NEW",
            file=str(path),
            row=line,
        ) from None


def _one(text: str, path: Path, line: int) -> str:
    if text.startswith('"'):
        inside = re.fullmatch(r'"((?:[^"]|"")*)"', text)
        if inside is None:
            raise InvalidValueError(
                f"{path}, line {line}: {text!r} begins with a quote that does not end with the "
                "line",
                fix="write one id a line, with a quote at both ends or without",
                file=str(path),
                row=line,
            )
        text = inside[1].replace('""', '"')
    try:
        return as_id(text, "user id")
    except InvalidIdError as problem:
        raise InvalidValueError(
            f"{path}, line {line}: {problem.message}",
            fix="write one id a line",
            file=str(path),
            row=line,
        ) from None


def listed(users: Sequence[str]) -> bytes:
    """Return the content of a list of users, to be read by `read_erased_users`; ids with quotes are
    quoted.
    """
    lines = [
        '"' + user.replace('"', '""') + '"' if user.startswith('"') else user for user in users
    ]
    return "".join(f"{line}\n" for line in lines).encode()
