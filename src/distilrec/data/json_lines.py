"""JSON lines: one object a line, every number as it is written, or the line that is none is named.

Two passes: the first finds what each column holds in all lines, the second writes the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from distilrec.data.lines import PlainText
from distilrec.data.separated import Batches, Rows
from distilrec.errors import DataError
from distilrec.ids import MAX_WHOLE_FLOAT

_BATCH = 50_000
_INT64 = 2**63


def scan_json_lines(text: PlainText, scratch: Path) -> Rows:
    """Return the rows of a file, with a column for each key. Whole numbers are integers, also where
    some are written as floats.

    Raises DataError that names the first line that is not a JSON object.
    """
    kinds: dict[str, _Kinds] = {}
    count = 0
    for batch in _batches(text):
        count += len(batch)
        for name in dict.fromkeys(name for row in batch for name in row):
            kinds.setdefault(name, _Kinds()).add([row.get(name) for row in batch])
    store = Batches(scratch)
    schema = {name: kind.dtype() for name, kind in kinds.items()}
    for batch in _batches(text):
        store.write(
            pl.DataFrame(
                [
                    pl.Series(name, [_value(row.get(name), dtype) for row in batch], dtype=dtype)
                    for name, dtype in schema.items()
                ]
            )
        )
    if not store.files:
        return Rows(pl.LazyFrame(), count=0)
    return Rows(store.scan(), count=count)


def _batches(text: PlainText) -> Iterator[list[dict[str, Any]]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with text.file.open("rb") as lines:
        number = 0
        while chunk := list(islice(lines, _BATCH)):
            batch = []
            for line in chunk:
                number += 1
                if line.isspace():
                    continue
                try:
                    batch.append(decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
                    raise DataError(
                        f"{text.source} cannot be read as jsonl: line {number:,} is not a JSON "
                        f"object: {problem}",
                        fix="correct that line, and check that the file is complete",
                        file=str(text.source),
                        row=number,
                    ) from None
            if batch:
                yield batch


@dataclass
class _Kinds:
    """What the values of a column are. fractions: some floats are not whole; large: some floats may
    stand for several integers; wide: some integers need more than 64 bits; inside: the same of the
    values in lists.
    """

    types: set[type] = field(default_factory=set)
    fractions: bool = False
    large: bool = False
    wide: bool = False
    inside: _Kinds | None = None

    def add(self, values: list[Any]) -> None:
        types = set(map(type, values)) - {type(None)}
        self.types |= types
        if float in types:
            floats = [value for value in values if type(value) is float]
            self.fractions = self.fractions or not all(map(float.is_integer, floats))
            self.large = self.large or any(abs(value) >= MAX_WHOLE_FLOAT for value in floats)
        if int in types:
            self.wide = self.wide or any(
                type(value) is int and not -_INT64 <= value < _INT64 for value in values
            )
        if list in types:
            self.inside = self.inside or _Kinds()
            self.inside.add([part for value in values if type(value) is list for part in value])

    def dtype(self) -> pl.DataType:
        if list in self.types or dict in self.types:
            inside = self.inside.dtype() if self.inside and self.types == {list} else pl.String()
            return pl.List(pl.String() if isinstance(inside, pl.List) else inside)
        if self.types == {bool}:
            return pl.Boolean()
        if self.types == {int}:
            return pl.String() if self.wide else pl.Int64()
        if self.types == {float} or (self.types == {int, float} and self.fractions):
            return pl.Float64()
        if self.types == {int, float} and not self.large and not self.wide:
            return pl.Int64()
        return pl.String()


def _value(value: Any, dtype: pl.DataType) -> Any:
    if value is None:
        return None
    if isinstance(dtype, pl.List):
        parts = value if isinstance(value, list) else [value]
        return [_value(part, dtype.inner) for part in parts]  # type: ignore[arg-type]
    if isinstance(dtype, pl.String):
        return _as_text(value)
    if isinstance(dtype, pl.Int64):
        return int(value)
    return float(value) if isinstance(dtype, pl.Float64) else value


def _as_text(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            # Such a float is no integer by the rule of ids where it is 2^53 or more
            return f"{int(value)}.0"
        case dict() | list():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value)
