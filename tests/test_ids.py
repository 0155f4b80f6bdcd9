"""The one rule for ids, in Python and in Rust's regular expressions."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.errors import InvalidIdError
from distilrec.ids import REFUSED, SPACES, WHOLE_FLOAT, as_id


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"), (7.0, "7"), ("7.0", "7"), ("7", "7"), (" 7 ", "7"), (np.int64(7), "7"), (np.float64(7), "7"), (-0.0, "0"),
        ("007", "007"), ("1.50", "1.50"), ("-3.0", "-3"), ("01.0", "01.0"), ("v1.0", "v1.0"), ("a b", "a b"), (2**70, str(2**70)),
        ("\u00a0x\u3000", "x"), (UUID(int=1), "00000000-0000-0000-0000-000000000001"), ("x" * 256, "x" * 256),
    ],
)  # fmt: skip
def test_what_is_an_id(value, text):
    assert as_id(value) == text


@pytest.mark.parametrize(
    "value",
    [
        "", "  ", "victim\n", "\tx", "a\x00b", "a\u2028b", "\ud800", "a\ufffdb", "x" * 257, 1.5, float("nan"), float("inf"), 2.0**53,
        "9007199254740993.0", None, True, b"x", [1], np.bool_(True),
    ],
)  # fmt: skip
def test_what_is_not(value):
    with pytest.raises(InvalidIdError, match="user_id"):
        as_id(value, "user_id")


@given(st.text())
def test_the_patterns_mean_the_same_in_polars(text):
    column = pl.Series([text.encode("utf-8", "replace").decode()])
    trimmed = column.str.strip_chars(SPACES)
    whole = trimmed.str.extract(WHOLE_FLOAT, 1)[0]
    try:
        expected = as_id(column[0])
    except InvalidIdError:
        assert (
            column.str.contains(REFUSED)[0] or not 1 <= len(trimmed[0]) <= 256 or whole is not None
        )
    else:
        assert not column.str.contains(REFUSED)[0]
        assert expected == (trimmed[0] if whole is None else str(int(whole)))
