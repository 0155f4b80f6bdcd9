"""Features as numbers: the fitted encoders, and how one row is encoded.

Both sides use this module: training encodes whole tables with it, the engine encodes a new user or
item with it, so the two can never drift apart. It needs numpy and msgspec only. Fitting is in
`distilrec.data.features`.

A row becomes a *bag*: pairs (column, weight) into one wide vector of `width` columns. Column 0 of
each categorical or multi-valued feature is its unknown slot.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.errors import ColumnTypeError, InvalidValueError
from distilrec.features.lists import parse_list

_TOKEN = re.compile(r"\w+")


class CategoricalEncoding(msgspec.Struct, frozen=True, tag="categorical", tag_field="kind"):
    """One value out of `values`; anything else, and a missing value, is the unknown slot."""

    name: str
    values: tuple[str, ...]

    @property
    def width(self) -> int:
        return 1 + len(self.values)


class MultiEncoding(msgspec.Struct, frozen=True, tag="multi", tag_field="kind", omit_defaults=True):
    """Several values; n of them weigh 1/sqrt(n) each, so that every row has length 1. Text is split
    at `separator`.
    """

    name: str
    values: tuple[str, ...]
    separator: Annotated[str, msgspec.Meta(min_length=1)] = "|"

    @property
    def width(self) -> int:
        return 1 + len(self.values)


class NumericEncoding(msgspec.Struct, frozen=True, tag="numeric", tag_field="kind"):
    """A number as its quantile, scaled to [-1, 1]; a missing one sets the second column to 1
    instead.
    """

    name: str
    quantiles: tuple[float, ...]

    @property
    def width(self) -> int:
        return 2


class TextEncoding(msgspec.Struct, frozen=True, tag="text", tag_field="kind"):
    """Lower-case words hashed (CRC-32) into `buckets` columns; n words weigh 1/sqrt(n) each."""

    name: str
    buckets: int

    @property
    def width(self) -> int:
        return self.buckets


class VectorEncoding(
    msgspec.Struct, frozen=True, tag="vector", tag_field="kind", omit_defaults=True
):
    """A list of `width` numbers as they are; a missing one is all zeros. Text is split at
    `separator`.
    """

    name: str
    width: int
    separator: Annotated[str, msgspec.Meta(min_length=1)] = "|"


Encoding = CategoricalEncoding | MultiEncoding | NumericEncoding | TextEncoding | VectorEncoding


@dataclass(frozen=True)
class FeatureMatrix:
    """Encoded rows, padded to the longest bag.

    columns: (rows, longest) int32, padded with 0; weights: (rows, longest) float32, padded with 0.
    """

    columns: NDArray[np.int32]
    weights: NDArray[np.float32]
    width: int

    @property
    def rows(self) -> int:
        return int(self.columns.shape[0])

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> FeatureMatrix:
        """Return some of the rows."""
        return FeatureMatrix(self.columns[rows], self.weights[rows], self.width)

    def dense(self) -> NDArray[np.float32]:
        """Return the same rows as a dense matrix, (rows, width) float32."""
        out = np.zeros((self.rows, self.width), np.float32)
        np.add.at(out, (np.arange(self.rows)[:, None], self.columns), self.weights)
        return out


class FeatureEncoder(msgspec.Struct, frozen=True, dict=True):
    """The encodings of one entity (user or item), side by side in one vector of `width` columns."""

    encodings: tuple[Encoding, ...] = ()

    @cached_property
    def width(self) -> int:
        return sum(encoding.width for encoding in self.encodings)

    @cached_property
    def _slots(self) -> dict[str, dict[str, int]]:
        return {
            e.name: _flags_as_before({value: slot for slot, value in enumerate(e.values, start=1)})
            for e in self.encodings
            if isinstance(e, CategoricalEncoding | MultiEncoding)
        }

    def column_names(self) -> list[str]:
        """Return a readable name per column, for explanations and reports."""
        names: list[str] = []
        for e in self.encodings:
            match e:
                case CategoricalEncoding() | MultiEncoding():
                    names += [f"{e.name}=unknown", *(f"{e.name}={value}" for value in e.values)]
                case NumericEncoding():
                    names += [e.name, f"{e.name} missing"]
                case TextEncoding():
                    names += [f"{e.name}~{bucket}" for bucket in range(e.buckets)]
                case VectorEncoding():
                    names += [f"{e.name}[{position}]" for position in range(e.width)]
        return names

    def encode(self, row: Mapping[str, object]) -> list[tuple[int, float]]:
        """Return the bag of one row: (column, weight) pairs. A key that is absent counts as a
        missing value.

        Raises InvalidValueError for a NaN or infinite number and for a vector of another length,
        ColumnTypeError for text where a number belongs.
        """
        bag: list[tuple[int, float]] = []
        start = 0
        for e in self.encodings:
            value = row.get(e.name)
            match e:
                case CategoricalEncoding():
                    slot = 0 if value is None else self._slots[e.name].get(as_category(value), 0)
                    bag.append((start + slot, 1.0))
                case MultiEncoding():
                    parts = as_parts(value, e.separator)
                    slots = {self._slots[e.name].get(part, 0) for part in parts} or {0}
                    bag += [(start + slot, 1 / math.sqrt(len(slots))) for slot in sorted(slots)]
                case NumericEncoding():
                    bag.append((start + 1, 1.0) if value is None else (start, _quantile(e, value)))
                case TextEncoding():
                    words = {
                        zlib.crc32(w.encode()) % e.buckets
                        for w in _TOKEN.findall(str(value or "").lower())
                    }
                    bag += [(start + word, 1 / math.sqrt(len(words))) for word in sorted(words)]
                case VectorEncoding() if e.width:  # 0: no training row had one
                    bag += list(enumerate(as_vector(e.name, value, e.width, e.separator), start))
            start += e.width
        return bag

    def encode_rows(self, rows: Sequence[Mapping[str, object]]) -> FeatureMatrix:
        """Return the bags of many rows, padded to the longest."""
        bags = [self.encode(row) for row in rows]
        longest = max((len(bag) for bag in bags), default=0)
        columns = np.zeros((len(bags), longest), np.int32)
        weights = np.zeros((len(bags), longest), np.float32)
        for row, bag in enumerate(bags):
            for position, (column, weight) in enumerate(bag):
                columns[row, position] = column
                weights[row, position] = weight
        return FeatureMatrix(columns, weights, self.width)


def _flags_as_before(slots: dict[str, int]) -> dict[str, int]:
    """Return slots under which flags are found too where they were learned as `True` and `False`,
    as distilrec 0.1 did.
    """
    return {text.lower(): slot for text, slot in slots.items() if text in ("True", "False")} | slots


def as_category(value: object) -> str:
    """Return the text of a categorical value: `1.0` and `1` are the same category, a flag is `true`
    or `false`.
    """
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def as_parts(value: object, separator: str = "|") -> list[str]:
    """Return the values of a multi-valued cell: a list as it is, also one that was printed as text;
    other text split at the separator, anything else is one value.
    """
    if value is None:
        return []
    raw = split_text(value, separator) if isinstance(value, str) else value
    raw = raw if isinstance(raw, list | tuple | set) else [raw]
    return [text for part in raw if part is not None and (text := as_category(part))]


def split_text(text: str, separator: str) -> list[str]:
    """Return the values in a cell of text: those of a list that was printed, and other text split
    at the separator.
    """
    try:
        listed = parse_list(text)
    except ValueError:
        listed = None
    return text.split(separator) if listed is None else listed


def as_number(name: str, value: object) -> float:
    """Return a finite float. Raises ColumnTypeError and InvalidValueError, which name the
    feature.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ColumnTypeError(
            f"feature {name!r} is numeric, but holds {value!r}",
            fix=f"declare {name!r} as 'categorical' or clean the column",
            column=name,
            value=value,
        ) from None
    if not math.isfinite(number):
        raise InvalidValueError(
            f"feature {name!r} holds {number}",
            fix="leave the value empty where it is not known",
            column=name,
        )
    return number


def as_vector(
    name: str, value: object, width: int | None = None, separator: str = "|"
) -> list[float]:
    """Return the numbers of a vector, none where it is missing; text is split at the separator.

    width: the number that a vector must have; any number by default.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = split_text(value, separator)
    if not isinstance(value, list | tuple):
        raise ColumnTypeError(
            f"feature {name!r} is a vector, but holds {value!r}",
            fix="give a list of numbers",
            column=name,
            value=value,
        )
    numbers = [as_number(name, part) for part in value]
    if width is not None and len(numbers) != width:
        raise InvalidValueError(
            f"feature {name!r} holds a vector of {len(numbers)} numbers, others hold {width}",
            fix="give vectors of one length",
            column=name,
        )
    return numbers


def _quantile(encoding: NumericEncoding, value: object) -> float:
    number = as_number(encoding.name, value)
    return float(quantile_levels(encoding, np.float64(number)))


def quantile_levels(
    encoding: NumericEncoding, numbers: NDArray[np.float64] | np.float64
) -> NDArray[np.float64]:
    """Return numbers as their quantiles, scaled to [-1, 1], in the same shape."""
    levels = np.linspace(-1.0, 1.0, len(encoding.quantiles))
    scaled: NDArray[np.float64] = np.interp(numbers, encoding.quantiles, levels)
    return scaled
