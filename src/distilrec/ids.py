"""One rule for the ids of users and items at every door: log, tables, files, command line, Python
and HTTP.

- A whole number is its decimal text: 7, 7.0, "7" and "7.0" are one id. Floats of 2^53 and more are
  refused: several integers have become the same float there. Other fractions, booleans and missing
  values are refused.
- Spaces at both ends are removed, every other character is kept exactly.
- 1 to 256 characters are left, none of them a control character, a line separator, a lone surrogate
  or U+FFFD, the mark that decoders leave where bytes were not text.

docs/decisions/identifiers.md says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral
from uuid import UUID

from distilrec.errors import InvalidIdError

Id = str | int | float | UUID
"""What callers may give as an id; `as_id` refuses fractions and floats that are too large."""

MAX_CHARACTERS = 256
MAX_WHOLE_FLOAT = 2.0**53
SPACES = (
    " \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u202f\u205f\u3000"
)
"""The characters that are removed at both ends: Unicode's space separators (category Zs), no tabs,
no line breaks.
"""
REFUSED = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]"
"""A pattern, for Python and for Rust's regular expressions, of the characters that no id may have.
"""
WHOLE_FLOAT = r"^(-?(?:0|[1-9][0-9]*))\.0+$"
"""A pattern, for Python and for Rust's regular expressions, of a whole number written as a float;
group 1 is the integer.
"""

_SHOWN = 40  # characters of a wrong value in a message
_TOO_LARGE = 10**MAX_CHARACTERS
_REFUSED = re.compile(f"{REFUSED}|[\ud800-\udfff]")
_WHOLE_FLOAT = re.compile(WHOLE_FLOAT.replace("$", r"\Z"))


def as_id(value: object, what: str = "id") -> str:
    """Return the text of an id. what: names the id in the error, such as "user_id".

    Raises InvalidIdError for what cannot be an id.
    """
    if isinstance(value, str):
        return _checked(value, what)
    if isinstance(value, Integral) and not isinstance(value, bool):
        # Python refuses to write out integers of thousands of digits.
        if abs(int(value)) >= _TOO_LARGE:
            raise _invalid("…", what, f"is a number of more than {MAX_CHARACTERS} digits")
        return _checked(str(int(value)), what)
    if isinstance(value, float):
        if not value.is_integer():  # NaN and infinities are none
            raise _invalid(value, what, "is not a whole number")
        if abs(value) >= MAX_WHOLE_FLOAT:
            raise _invalid(value, what, "is a float so large that several integers are the same")
        return str(int(value))
    if isinstance(value, UUID):
        return str(value)
    raise _invalid(value, what, "is missing" if value is None else f"is a {type(value).__name__}")


def listed_ids(values: Iterable[Id], what: str) -> list[Id]:
    """Return several ids as a list, each as it was given. what: names the list in the error, such
    as "item_ids".

    Raises InvalidIdError for one id where a list belongs: the characters of a text are no ids.
    """
    if type(values) is not list and (
        isinstance(values, str | bytes) or not isinstance(values, Iterable)
    ):
        shown = repr(values)
        raise InvalidIdError(
            f"{what} is {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}, not a list of "
            "ids",
            fix=f"give a list, such as [{shown if len(shown) <= _SHOWN else '…'}]",
            parameter=what,
        )
    return list(values)


def as_label(text: str, what: str, limit: int) -> str:
    """Return a text that names something for a program, such as an event id, exactly as it is.

    Raises InvalidIdError for one that is empty, longer than `limit`, or holds a character that no
    id may have.
    """
    if found := _REFUSED.search(text):
        raise _unusable(text, what, f"holds the character U+{ord(found[0]):04X}", limit)
    if not text or len(text) > limit:
        raise _unusable(text, what, f"has {len(text):,} characters", limit)
    return text


def _checked(text: str, what: str) -> str:
    if found := _REFUSED.search(text):
        raise _invalid(text, what, f"holds the character U+{ord(found[0]):04X}")
    text = text.strip(SPACES)
    if not text:
        raise _invalid(text, what, "is empty")
    if len(text) > MAX_CHARACTERS:
        raise _invalid(text[:20] + "…", what, f"has {len(text):,} characters")
    if whole := _WHOLE_FLOAT.match(text):
        if abs(int(whole[1])) >= MAX_WHOLE_FLOAT:
            raise _invalid(text, what, "is a float so large that several integers are the same")
        return "0" if whole[1] == "-0" else whole[1]
    return text


def _unusable(text: str, what: str, problem: str, limit: int) -> InvalidIdError:
    return InvalidIdError(
        f"the {what} {text[:_SHOWN]!r} {problem}",
        fix=f"give text of 1 to {limit} characters without control characters",
        parameter=what,
    )


def _invalid(value: object, what: str, problem: str) -> InvalidIdError:
    return InvalidIdError(
        f"the {what} {value!r} {problem}",
        fix=f"give a whole number, or text of 1 to {MAX_CHARACTERS} characters without control "
        "characters",
        parameter=what,
    )
