"""API keys: kept as hashes in a TOML file, with scopes and a rate limit each; compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from distilrec.errors import ConfigError, ForbiddenError, RateLimitedError, UnauthorizedError
from distilrec.settings import Count, Positive, Settings, read_settings

Scope = Literal["recommend", "events", "items", "users", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_PREFIX = "dr_"


class KeyEntry(Settings, frozen=True):
    """One key as it stands in the file. rate: requests per second, None for no limit; burst: at once."""

    name: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
    scopes: tuple[Scope, ...]
    rate: Positive | None = None
    burst: Count = 100


class _KeyFile(Settings, frozen=True):
    key: tuple[KeyEntry, ...] = ()


class Caller:
    """Whoever sends requests with one key: its scopes, and a token bucket."""

    def __init__(self, entry: KeyEntry, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.scopes = entry.name, frozenset(entry.scopes)
        self._rate, self._burst, self._clock = entry.rate, float(entry.burst), clock
        self._tokens, self._filled = self._burst, clock()

    def admit(self, scope: Scope) -> None:
        """Raises ForbiddenError without the scope, RateLimitedError when the bucket is empty."""
        if scope not in self.scopes:
            raise ForbiddenError(
                f"the API key {self.name!r} has not the scope {scope!r}", fix="use a key that has it", scope=scope
            )
        if self._rate is None:
            return
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            wait = (1 - self._tokens) / self._rate
            raise RateLimitedError(
                f"the API key {self.name!r} may send {self._rate:g} requests per second",
                fix=f"come back in {wait:.3f} s",
                retry_after=wait,
            )
        self._tokens -= 1


class Keys:
    """All callers of a service. Without entries everybody may do everything."""

    def __init__(self, entries: Sequence[KeyEntry]) -> None:
        self._callers = [(bytes.fromhex(entry.sha256), Caller(entry)) for entry in entries]
        self._anyone = Caller(KeyEntry("anyone", "", SCOPES)) if not entries else None

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._anyone is None

    def admit(self, given: bytes | None, scope: Scope) -> None:
        """Raises UnauthorizedError, ForbiddenError or RateLimitedError. given: the value of the header, if any."""
        caller = self._anyone or self._find(given)
        caller.admit(scope)

    def _find(self, given: bytes | None) -> Caller:
        if given is None:
            raise UnauthorizedError("this service needs an API key", fix="send the header `authorization: Bearer KEY`")
        digest = hashlib.sha256(given.removeprefix(b"Bearer ")).digest()
        found = None
        for known, caller in self._callers:  # all of them, whatever the first differences are
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise UnauthorizedError("the API key is not valid", fix="check the key, or ask for a new one")
        return found


def read_keys(path: Path | str | None) -> Keys:
    """The keys of a file. Raises FileMissingError and ConfigError."""
    if path is None:
        return Keys(())
    entries = read_settings(path, _KeyFile, fix="make it with `distilrec key`").key
    if not entries:
        raise ConfigError(f"{path} has no key", fix="make its entries with `distilrec key`", file=str(path))
    return Keys(entries)


def new_key(name: str, scopes: Sequence[Scope], rate: float | None) -> tuple[str, str]:
    """A new secret key, and its entry for the TOML file, which does not hold the secret."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    lines = [
        "[[key]]",
        f"name = {msgspec.json.encode(name).decode()}",
        f'sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"',
        f"scopes = {msgspec.json.encode(list(scopes)).decode()}",
        *([] if rate is None else [f"rate = {rate}"]),
    ]
    return secret, "\n".join(lines) + "\n"
