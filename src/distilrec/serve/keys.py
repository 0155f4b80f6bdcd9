"""API keys: kept as hashes in a TOML file, with scopes and a rate limit each; compared in constant
time.

The file is read again when it changes: a key that is taken out of it is refused within a second or
two.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from distilrec.errors import (
    ConfigError,
    DistilrecError,
    ForbiddenError,
    RateLimitedError,
    UnauthorizedError,
)
from distilrec.serve.logs import log
from distilrec.settings import Count, Positive, Settings, read_settings

Scope = Literal["recommend", "events", "items", "users", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_PUBLIC: tuple[Scope, ...] = ("recommend", "events")
_PREFIX = "dr_"
_ADDRESSES = 10_000  # of one public key, whose rates are remembered
_WATCH_SECONDS = 1.0


class KeyEntry(Settings, frozen=True):
    """One key as it stands in the file."""

    name: str
    """Name of the key, for people."""
    sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
    """Hash of the secret."""
    scopes: tuple[Scope, ...]
    """What the key may do."""
    rate: Positive | None = None
    """Maximum number of requests per second; no limit by default."""
    burst: Count = 100
    """Requests that may come together."""
    public: bool = False
    """Whether the key stands in web pages, where everybody can read it: it may then only recommend
    and send events, and its rate, which it needs, is that of each address.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_public(self.scopes, self.rate, public=self.public)


def check_public(scopes: Sequence[Scope], rate: float | None, *, public: bool) -> None:
    """Raise ConfigError for a public key that may do too much, or has no rate."""
    if not public:
        return
    if more := [scope for scope in scopes if scope not in _PUBLIC]:
        raise ConfigError(
            f"a public key has the scope {more[0]!r}",
            fix=f"give it no others than {' and '.join(_PUBLIC)}: everybody can read it",
            parameter="scopes",
        )
    if rate is None:
        raise ConfigError(
            "a public key has no rate",
            fix="give the requests per second that one address may send, such as rate = 5",
            parameter="rate",
        )


class _KeyFile(Settings, frozen=True):
    key: tuple[KeyEntry, ...] = ()


class Caller:
    """The sender of requests with one key: its scopes, and a token bucket."""

    def __init__(self, entry: KeyEntry, clock: Callable[[], float] = time.monotonic) -> None:
        self.entry, self.name, self.scopes = entry, entry.name, frozenset(entry.scopes)
        self._rate, self._burst, self._clock = entry.rate, float(entry.burst), clock
        self._tokens, self._filled = self._burst, clock()
        self._at: dict[str, Caller] = {}  # by address, the one that asked last at the end

    def at(self, address: str) -> Caller:
        """Return who sends the requests with this key from an address: the key itself, unless it is
        public. Of many addresses the latest are remembered.
        """
        if not self.entry.public:
            return self
        caller = self._at.pop(address, None) or Caller(self.entry, self._clock)
        self._at[address] = caller
        if len(self._at) > _ADDRESSES:
            del self._at[next(iter(self._at))]
        return caller

    def admit(self, scope: Scope) -> None:
        """Raise ForbiddenError without the scope, RateLimitedError when the bucket is empty."""
        if scope not in self.scopes:
            raise ForbiddenError(
                f"the API key {self.name!r} lacks the scope {scope!r}",
                fix="use a key that has it",
                scope=scope,
            )
        if self._rate is None:
            return
        self._fill()
        if self._tokens < 1:
            raise self._too_many(1)
        self._tokens -= 1

    def charge(self, more: int) -> None:
        """Take what a request of several counts as beyond the one that `admit` took.

        The bucket may run into debt by one request, which the next ones wait for: a batch larger
        than `burst` passes, and the mean rate holds. Raises RateLimitedError where it is in debt
        already.
        """
        if self._rate is None:
            return
        self._fill()
        if self._tokens < 0:
            raise self._too_many(0)
        self._tokens -= more

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * (self._rate or 0.0))
        self._filled = now

    def _too_many(self, needed: int) -> RateLimitedError:
        rate = self._rate or 1.0
        wait = (needed - self._tokens) / rate
        return RateLimitedError(
            f"the API key {self.name!r} may send {rate:g} requests per second"
            f"{' from an address' if self.entry.public else ''}, and each of a batch counts",
            fix=f"come back in {wait:.3f} s",
            retry_after=wait,
        )


class Keys:
    """All callers of a service. Without entries everybody may do everything. path: the file of the
    entries.
    """

    def __init__(self, entries: Sequence[KeyEntry], path: Path | None = None) -> None:
        self._path, self._seen = path, None if path is None else _state(path)
        self._callers = [(bytes.fromhex(entry.sha256), Caller(entry)) for entry in entries]
        self._anyone = Caller(KeyEntry("anyone", "", SCOPES)) if not entries else None

    async def watch(self) -> None:
        """Read the file again whenever it changes, until cancelled. One that cannot be read
        changes nothing.
        """
        while self._path is not None:
            await asyncio.sleep(_WATCH_SECONDS)
            state = await asyncio.to_thread(_state, self._path)
            if state == self._seen:
                continue
            self._seen = state
            try:
                entries = await asyncio.to_thread(_read, self._path)
            except DistilrecError as problem:
                log(
                    "the file of keys cannot be read: the keys stay as they were",
                    logging.ERROR,
                    code=problem.code,
                )
                continue
            self._replace(entries)
            log("keys read again", keys=len(entries))

    def _replace(self, entries: Sequence[KeyEntry]) -> None:
        """From now on these entries are valid; the rate of one that stays as it was goes on."""
        before = {caller.entry: caller for _, caller in self._callers}
        self._callers = [
            (bytes.fromhex(entry.sha256), before.get(entry) or Caller(entry)) for entry in entries
        ]

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._anyone is None

    def admit(self, headers: Mapping[bytes, bytes], scope: Scope, address: str = "") -> Caller:
        """Return the caller of a request from an address. Raises UnauthorizedError, ForbiddenError
        or RateLimitedError.
        """
        caller = self._anyone or self._find(headers).at(address)
        caller.admit(scope)
        return caller

    def _find(self, headers: Mapping[bytes, bytes]) -> Caller:
        given = _secret(headers)
        if given is None:
            raise UnauthorizedError(
                "this service needs an API key", fix="send the header `authorization: Bearer KEY`"
            )
        digest = hashlib.sha256(given).digest()
        match = None
        for stored, caller in self._callers:  # all of them, whatever the first differences are
            if hmac.compare_digest(stored, digest):
                match = caller
        if match is None:
            raise UnauthorizedError(
                "the API key is not valid", fix="check the key, or ask for a new one"
            )
        return match


def _secret(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the key of a request: what follows the word Bearer, in any case, or the value of
    x-api-key.
    """
    given = headers.get(b"authorization")
    if given is None:
        return headers.get(b"x-api-key")
    scheme, _, rest = given.strip().partition(b" ")
    return rest.strip() if scheme.lower() == b"bearer" else given


def read_keys(path: Path | str | None) -> Keys:
    """Return the keys of a file. Raises FileMissingError and ConfigError."""
    if path is None:
        return Keys(())
    return Keys(_read(Path(path)), Path(path))


def _read(path: Path) -> tuple[KeyEntry, ...]:
    entries = read_settings(path, _KeyFile, fix="make it with `distilrec key`").key
    if not entries:
        raise ConfigError(
            f"{path} has no key", fix="make its entries with `distilrec key`", file=str(path)
        )
    return entries


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes with the content of a file, None where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def new_key(
    name: str, scopes: Sequence[Scope], rate: float | None, *, public: bool = False
) -> tuple[str, str]:
    """Return a new secret key, and its entry for the TOML file, which does not hold the secret.

    Raises ConfigError for a public key that may do too much, or has no rate.
    """
    check_public(scopes, rate, public=public)
    secret = _PREFIX + secrets.token_urlsafe(32)
    lines = [
        "[[key]]",
        f"name = {msgspec.json.encode(name).decode()}",
        f'sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"',
        f"scopes = {msgspec.json.encode(list(scopes)).decode()}",
        *([] if rate is None else [f"rate = {rate}"]),
        *(["public = true"] if public else []),
    ]
    return secret, "\n".join(lines) + "\n"
