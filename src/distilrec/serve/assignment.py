"""Which arm of an experiment a user is in: always the same, in every process and after a restart,
and without anything being stored.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

GROUPS = 64
"""Of the users of an arm: what they did is added up by group (`distilrec.confidence`)."""
_SIZE = 16  # bytes of a hash: 8 for the arm, 8 for the group


class Assignment(NamedTuple):
    """variant: whether the user gets the variant, not the control; group: below `GROUPS`."""

    variant: bool
    group: int


class Assigner:
    """Split users by a hash (BLAKE2b, RFC 7693) of their id and the name of the experiment.

    key: 16 to 64 bytes, the same in every process; who does not know it cannot choose an id for an
    arm. share: of users who get the variant, from 0 to 1.
    """

    def __init__(self, key: bytes, experiment: str, share: float) -> None:
        self._keyed = blake2b(experiment.encode(), digest_size=_SIZE, key=key, person=b"experiment")
        self._below = round(share * 2**64)

    def of(self, kind: str, unit: str) -> Assignment:
        """Return where a user or visitor is. kind: keeps ids of users and of visitors apart."""
        keyed = self._keyed.copy()
        keyed.update(f"\0{kind}\0{unit}".encode())
        digest = keyed.digest()
        position, group = int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
        return Assignment(position < self._below, group % GROUPS)
