"""Text files as UTF-8: encodings are read or refused, compressed files are unpacked, and what is in
them is counted.

The files are read in pieces of a few megabytes; a copy is written only where the file is not plain
UTF-8 already.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distilrec.errors import ConfigError, DataError, first_line
from distilrec.settings import Settings

COMPRESSED = {".gz", ".zst"}
_CHUNK = 1 << 22
SEPARATORS = "\t,; "  # of cells, the likelier ones first
MARKS = (  # of byte order; the longer ones first: one of UTF-32 begins like one of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BLANK = re.compile(r"(?:^|(?<=\n))\r?\n")


class TextFormat(Settings, frozen=True):
    """How the text of a table is written.

    encoding: UTF-8 if left out; a byte order mark decides in any case. quote: the character around
    cells that hold separators or line ends, "" for none; left out, `"` for all but tab-separated
    files. escape: the character that takes the meaning from the next one, such as the backslash of
    Spark; quotes are doubled without it.
    """

    encoding: str | None = None
    quote: str | None = None
    escape: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            raise ConfigError(
                f"no text encoding {self.encoding!r} is known",
                fix="for example latin-1, cp1252, utf-16 or shift_jis",
                parameter="encoding",
            )
        for name in ("quote", "escape"):
            value = getattr(self, name)
            if value is not None and (
                len(value) > 1 or not value.isascii() or value in ("\n", "\r", "\0")
            ):
                raise ConfigError(
                    f"{name} is {value!r}", fix='use one ASCII character, or ""', parameter=name
                )
        if self.quote and self.quote == self.escape:
            raise ConfigError(
                "quote and escape are the same character",
                fix="leave out escape: doubled quotes are read without it",
                parameter="escape",
            )


def _is_text_encoding(name: str) -> bool:
    try:
        return isinstance("a".encode(name), bytes) and b"a".decode(name) is not None
    except (LookupError, ValueError, TypeError, UnicodeError):
        # UTF-16 cannot read a single byte, and is a text encoding all the same.
        return name.lower().replace("_", "-").startswith(("utf-16", "utf-32"))


@dataclass(frozen=True)
class PlainText:
    """A text file in UTF-8 without a byte order mark. source: the file that it was made from, for
    messages; lines: how many there are, blank ones (blank) included; counts: how often tab, comma,
    semicolon, blank, quote and escape occur.
    """

    file: Path
    source: Path
    lines: int
    blank: int
    counts: Counter[str]


def plain_text(source: Path, text: TextFormat, scratch: Path) -> PlainText:
    """Return the text of a file. scratch: a folder for a copy, where one is needed.

    Raises DataError that names the first line that is not text in the encoding.
    """
    encoding, marked = _encoding(source, text)
    as_it_is = encoding == "utf-8" and not marked and source.suffix.lower() not in COMPRESSED
    file = source if as_it_is else _new_file(scratch)
    counted = SEPARATORS + (text.quote or '"') + (text.escape or "")
    lines, blank, counts, last = 0, 0, Counter[str](), "\n"
    returns = False
    with open(os.devnull if as_it_is else file, "w", encoding="utf-8", newline="") as copy:
        for piece in _decoded(source, encoding):
            if "\0" in piece:
                line = lines + piece[: piece.index("\0")].count("\n") + 1
                raise DataError(
                    f"{source}, line {line:,}: a NUL character, which no text holds",
                    fix="is it UTF-16 without a byte order mark? Then set encoding = "
                    '"utf-16-le" (or -be)',
                    file=str(source),
                    row=line,
                )
            lines += piece.count("\n")
            blank += _blank_lines(piece, last)
            returns = returns or "\r" in piece
            for mark in counted:
                counts[mark] += piece.count(mark)
            last = piece[-1]
            if not as_it_is:
                copy.write(piece)
    if returns and lines == 0:  # line ends of an old Macintosh
        other = _new_file(scratch)
        with (
            file.open(encoding="utf-8", newline="") as old,
            other.open("w", encoding="utf-8", newline="") as new,
        ):
            while piece := old.read(_CHUNK):
                new.write(piece.replace("\r", "\n"))
        return plain_text_of_copy(other, source, text, scratch)
    return PlainText(file, source, lines + (last != "\n"), blank, counts)


def _blank_lines(piece: str, before: str) -> int:
    """Return the number of blank lines in a piece of text that follows the character `before`.

    The search by a pattern is slow, and most files have no blank line.
    """
    begins = piece.startswith(("\n", "\r\n"))
    if not begins and "\n\n" not in piece and "\n\r\n" not in piece:
        return 0
    return len(_BLANK.findall(piece)) - (begins and before != "\n")


def plain_text_of_copy(copy: Path, source: Path, text: TextFormat, scratch: Path) -> PlainText:
    """Return the same for a copy in UTF-8 that was made of a file."""
    made = plain_text(copy, TextFormat(None, text.quote, text.escape), scratch)
    return PlainText(made.file, source, made.lines, made.blank, made.counts)


def _new_file(scratch: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix="text-", dir=scratch)
    os.close(handle)
    return Path(name)


def _encoding(source: Path, text: TextFormat) -> tuple[str, bool]:
    """Return the encoding, and whether a byte order mark says so."""
    first = next(_pieces(source), b"")
    for mark, encoding in MARKS:
        if first.startswith(mark):
            return encoding, True
    name = codecs.lookup(text.encoding or "utf-8").name
    return ("utf-8" if name in ("utf-8-sig", "ascii") else name), False


def _decoded(source: Path, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)()
    lines, first = 0, True
    for final, piece in _with_end(_pieces(source)):
        try:
            text = decoder.decode(piece, final)
        except UnicodeDecodeError as problem:
            line = (
                lines + problem.object[: problem.start].decode(encoding, "replace").count("\n") + 1
            )
            bad = problem.object[problem.start : problem.start + 1].hex()
            likely = '"utf-16-le"' if b"\0" in problem.object else '"latin-1" or "cp1252"'
            raise DataError(
                f"{source}, line {line:,}: the byte 0x{bad} is not text in {encoding}",
                fix=f"set the encoding of the file in [data], for example encoding = {likely}",
                file=str(source),
                row=line,
            ) from None
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        lines += text.count("\n")
        if text:
            yield text


def _with_end(pieces: Iterator[bytes]) -> Iterator[tuple[bool, bytes]]:
    for piece in pieces:
        yield False, piece
    yield True, b""


def _pieces(source: Path) -> Iterator[bytes]:
    """Return the bytes of a file, unpacked. Raises DataError for a damaged archive."""
    suffix = source.suffix.lower()
    try:
        if suffix == ".zst":
            # polars unpacks by itself: no package for Zstandard is needed.
            for batch in pl.scan_lines(source, glob=False).collect_batches(maintain_order=True):
                if batch.height:
                    yield ("\n".join(batch.to_series().to_list()) + "\n").encode()
            return
        with gzip.open(source) if suffix == ".gz" else source.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile, pl.exceptions.PolarsError) as problem:
        fix = "check that the file is complete"
        if suffix == ".zst":
            fix += ", and in UTF-8: unpack text in another encoding first"
        raise DataError(
            f"{source} cannot be unpacked: {first_line(problem)}", fix=fix, file=str(source)
        ) from None
