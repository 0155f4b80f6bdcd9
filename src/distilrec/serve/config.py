"""What a service is told when it starts; every field is an option of `distilrec serve`."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from msgspec import Meta

from distilrec.bundle.manifest import SearchKind
from distilrec.errors import ConfigError
from distilrec.settings import Count, NotNegative, Positive, Settings


class ServiceConfig(Settings, frozen=True):
    """Limits, addresses and files of a service. Docs: docs/serving.md."""

    bundle: str
    store: str = "sqlite:///distilrec.db"
    store_prefix: str = "distilrec:"
    store_password_file: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    workers: Count = 1
    keys: str | None = None
    without_keys: bool = False
    allowed_hosts: tuple[str, ...] = ()
    bundle_root: str | None = None
    search: SearchKind | None = None
    max_users: Count = 200_000
    max_events: Count = 10_000
    max_k: Count = 1_000
    max_batch: Count = 1_000
    max_body: Count = 1_048_576
    max_head: Count = 32_768
    max_connections: Count = 1_000
    head_seconds: Positive = 10.0
    transfer_seconds: Positive = 60.0
    max_pending: Count = 50_000
    log_requests: bool = False
    drain_seconds: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers > 1 and self.store.startswith("sqlite:"):
            raise ConfigError(
                "several workers cannot share an SQLite store",
                fix="give --store redis://…, or one worker",
                parameter="workers",
            )
        if self.keys is None and not self.without_keys and not _is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines, and there are no API keys",
                fix="give --keys keys.toml (`distilrec key` makes one), or --without-keys if something else guards it",
                parameter="keys",
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
