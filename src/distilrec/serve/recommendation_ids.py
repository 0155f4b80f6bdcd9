"""The ids of answers: they say themselves when an answer was given and where it comes from, so that
nothing is stored for an answer.

An id is 24 bytes in base64url (RFC 4648), 32 characters:

| bytes | what |
|---|---|
| 1 | version, 1 |
| 4 | when the answer was given, in seconds since 1970, big-endian |
| 5 | key of the provenance: endpoint, placement, model, rules, variant; the store knows them |
| 5 | random |
| 1 | i, from 0 to 31 |
| 8 | code: bytes 8i to 8i + 8 of SHAKE128 (FIPS 202) of a secret and the first 15 bytes |

The secret is kept in the store. Ids are made in blocks of 32, which share all but the last nine
bytes: one id by itself would take ten times as long.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from hashlib import shake_128
from hmac import compare_digest
from random import getrandbits
from typing import NamedTuple

KEY_BYTES = 5  # of a provenance
_VERSION, _START, _END, _CODE = b"\1", 15, 9, 8
_BLOCK = 32
_INDICES = bytes(range(_BLOCK))
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class RecommendationId(NamedTuple):
    """What an id says."""

    given: int
    """When the answer was given, in seconds since 1970."""
    provenance: bytes
    """Key of where it comes from."""
    number: bytes
    """What tells it from other answers of that second, 6 bytes."""


class RecommendationIds:
    """Make and read ids. secret: 32 bytes, the same in every process over a store."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def block(self, provenance: bytes, seconds: int) -> list[str]:
        """Return 32 new ids. provenance: `KEY_BYTES`; seconds: since 1970."""
        start = _VERSION + seconds.to_bytes(4) + provenance + getrandbits(40).to_bytes(5)
        codes, ends = self._codes(start), bytearray(_BLOCK * _END)
        ends[::_END] = _INDICES
        for place in range(_CODE):
            ends[place + 1 :: _END] = codes[place::_CODE]
        common, text = _text(start), _text(ends)
        return [common + text[place : place + 12] for place in range(0, 12 * _BLOCK, 12)]

    def read(self, text: str) -> RecommendationId | None:
        """Return what an id says, None for one that was not made with this secret."""
        try:
            content = b64decode(text, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(content) != _START + _END or content[:1] != _VERSION or content[_START] >= _BLOCK:
            return None
        place = _CODE * content[_START]
        codes = self._codes(content[:_START])
        if not compare_digest(content[-_CODE:], codes[place : place + _CODE]):
            return None
        return RecommendationId(int.from_bytes(content[1:5]), content[5:10], content[10:16])

    def _codes(self, start: bytes) -> bytes:
        return shake_128(self._secret + start).digest(_BLOCK * _CODE)


def _text(content: bytes | bytearray) -> str:
    return binascii.b2a_base64(content, newline=False).translate(_URL_SAFE).decode()
