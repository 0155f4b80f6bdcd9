"""What a service is told when it starts; every field is an option of `distilrec serve`."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec

from distilrec.bundle.format import SearchKind
from distilrec.errors import ConfigError


class ServiceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits, addresses and files of a service. Docs: docs/serving.md."""

    bundle: str
    store: str = "sqlite:///distilrec.db"
    store_prefix: str = "distilrec:"
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    keys: str | None = None
    without_keys: bool = False
    bundle_root: str | None = None
    search: SearchKind | None = None
    max_users: int = 200_000
    max_events: int = 10_000
    max_k: int = 1_000
    max_batch: int = 1_000
    max_body: int = 1_048_576
    max_pending: int = 50_000
    log_requests: bool = False
    drain_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("workers", "max_users", "max_events", "max_k", "max_batch", "max_body", "max_pending"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="give at least 1", parameter=name)
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port is {self.port}", fix="give a port from 1 to 65535", parameter="port")
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
