"""The settings of a service; every field is an option of `distilrec serve`."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from distilrec.bundle.manifest import SearchKind
from distilrec.engine.strangers import HALF_LIFE
from distilrec.errors import ConfigError
from distilrec.settings import Count, NotNegative, Positive, Settings
from distilrec.stores.opening import check_sharing
from distilrec.stores.records import IMPRESSION, KEPT_HOURS

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


class ServiceConfig(Settings, frozen=True):
    """Limits, addresses and files of a service. See docs/serving.md."""

    bundle: str
    """Folder to serve."""
    store: str = "sqlite:///distilrec.db"
    """Address of the store: `sqlite:///FILE` for one process, `redis://HOST:PORT/NUMBER`,
    `redis+cluster://HOST:PORT,HOST:PORT` or `postgresql://USER@HOST/DATABASE` for several.
    """
    store_prefix: str = "distilrec:"
    """Prefix of every key in Redis, in a cluster their hash tag; without its colon the schema in
    PostgreSQL.
    """
    store_password_file: str | None = None
    """File that holds the password of the Redis or PostgreSQL server."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    """Port to listen at; 0 lets the system choose one."""
    workers: Count = 1
    """Number of processes; more than one need a store that they can share: Redis or PostgreSQL."""
    keys: str | None = None
    """File of API keys."""
    without_keys: bool = False
    """Whether the service may be reachable from other machines without keys."""
    allowed_hosts: tuple[str, ...] = ()
    """Other names that a service without keys may be reached by."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may ask the service, such as `https://shop.example`."""
    bundle_root: str | None = None
    """Folder from which bundles and rules may be loaded; by default the one that holds the
    bundle.
    """
    search: SearchKind | None = None
    """How the best items are found; as exported by default."""
    max_users: Count = 200_000
    """Maximum number of users in memory."""
    max_events: Count = 10_000
    """Number of latest events of a user that count as seen and can be explained; the state is a
    fold of all.
    """
    strangers_weight: NotNegative = 0.0
    """How much of what is popular of late is in the scores of users without events: this times
    log(1 + count) is added to the score of an item.
    """
    strangers_half_life: Annotated[float, Meta(gt=0, le=KEPT_HOURS)] = HALF_LIFE
    """Hours after which an event counts half for that."""
    max_k: Count = 1_000
    """Maximum number of items in one answer."""
    max_batch: Count = 1_000
    """Maximum number of events or recommendations in one request."""
    max_body: Count = 1_048_576
    """Maximum number of bytes of a request."""
    max_head: Count = 32_768
    """Maximum number of bytes of the path and headers of a request; beyond it the answer is 431."""
    max_connections: Count = 1_000
    """Maximum number of open connections of a worker; beyond it an idle one is closed, or the new
    one gets 503.
    """
    head_seconds: Positive = 10.0
    """Seconds for sending path and headers, from the connection on; then the answer is 408."""
    transfer_seconds: Positive = 60.0
    """Seconds for sending a body, and for reading an answer; then the connection is closed."""
    max_pending: Count = 50_000
    """Maximum number of events that wait to be stored; beyond it the answer is 503."""
    outcomes: bool = True
    """Whether answers carry a `recommendation_id`, which events may name."""
    outcome_days: Annotated[float, Meta(gt=0, le=90)] = 7.0
    """Days after an answer in which what happens is counted as its outcome."""
    click_types: tuple[str, ...] = ("click", "interaction")
    """Types of the events that say that an item of an answer was clicked."""
    conversion_types: tuple[str, ...] = ("buy", "purchase", "conversion")
    """Types of the events that say that an item of an answer was bought, or whatever the list is
    for.
    """
    log_requests: bool = False
    """Whether every request is logged, on one line."""
    drain_seconds: NotNegative = 0.0
    """Seconds for which `/readyz` answers 503 before the service stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers > 1:
            check_sharing(self.store, "workers", "several workers", ", or one worker")
        if both := {*self.click_types, IMPRESSION} & {*self.conversion_types} or (
            {IMPRESSION} & {*self.click_types}
        ):
            raise ConfigError(
                f"events of the type {min(both)!r} cannot mean two things",
                fix="name each type in --click-types or in --conversion-types; `impression` is "
                "in neither",
                parameter="conversion_types",
            )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"{origin!r} is not the origin of a web page",
                    fix="give scheme and name, and a port where there is one, such as "
                    "https://shop.example or http://localhost:3000; each one by itself",
                    parameter="allowed_origins",
                )
        if self.keys is None and not self.without_keys and not _is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines, and there are no API keys",
                fix="give --keys keys.toml (`distilrec key` makes one), or --without-keys if "
                "something else guards it",
                parameter="keys",
            )


def bundle_root(config: ServiceConfig) -> Path:
    """Return the folder from which bundles and rules may be loaded."""
    if config.bundle_root:
        return Path(config.bundle_root)
    return Path(config.bundle).resolve().parent


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
