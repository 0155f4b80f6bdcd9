"""Ids of users under another name: HMAC-SHA256 (RFC 2104) with a key that stays outside the data,
the models and the bundle.

The key is needed to find a person again, by computing the pseudonym. What
a person did can still give them away: this is pseudonymisation, not anonymity.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING

from distilrec.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

_SHORTEST = 16  # bytes of a key
_LENGTH = 32  # hexadecimal digits that are kept, 128 bits


def pseudonym(user_id: str, key: bytes) -> str:
    """Return the name under which this user is known, 32 hexadecimal digits."""
    return hmac.new(key, user_id.encode(), hashlib.sha256).hexdigest()[:_LENGTH]


def pseudonyms(ids: pl.Series, key: bytes) -> pl.Series:
    """Return the same for a column of text; what is missing or empty stays so."""
    import polars as pl  # a machine that serves has none, and needs `pseudonym` only

    distinct = ids.drop_nulls().unique()
    distinct = distinct.filter(distinct != "")
    names = pl.Series([pseudonym(user, key) for user in distinct.to_list()], dtype=pl.String)
    return ids.replace(distinct, names)


def pseudonym_key(variable: str) -> bytes:
    """Return the key in an environment variable. Raises ConfigError if it is missing or short."""
    key = os.environ.get(variable, "").encode()
    if len(key) < _SHORTEST:
        raise ConfigError(
            f"the environment variable {variable} should hold the key of the pseudonyms, and has "
            f"{len(key)} bytes",
            fix=f"export {variable}=$(openssl rand -hex 32), once, and keep it: another key makes "
            "strangers of all users",
            parameter="data.pseudonym_key",
        )
    return key
