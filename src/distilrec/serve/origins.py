"""Which web pages may ask a service without API keys. With keys, a page that has none can do
nothing.

To open a web page is to let its scripts send requests from this machine: to loopback, or to a name
of the page's own that begins to mean this machine (DNS rebinding). So `Host` must be a name that no
stranger can own, and a request that a browser sends for a page must come from a page of this
service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from distilrec.errors import OriginError
from distilrec.serve.config import ServiceConfig


class Origins:
    """Names of the service and of pages that may ask it. names: those that are allowed besides the
    obvious ones; pages: origins that may ask it, whatever their names.
    """

    def __init__(self, names: Iterable[str], pages: Iterable[str] = ()) -> None:
        self._names = frozenset(name.strip().rstrip(".").lower() for name in names)
        self._pages = frozenset(page.encode() for page in pages)
        self._found: set[bytes] = set()  # hosts that are ours, as the latest callers wrote them

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise OriginError for a request to a name of another site, or from a page of another
        site.
        """
        host = headers.get(b"host")
        if host in self._found and b"origin" not in headers and b"sec-fetch-site" not in headers:
            return  # no browser, and a name that was found to be ours
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if host is not None and not self._is_ours(host):
            raise OriginError(
                f"this service is not called {_name_of(host.decode('latin-1'))!r}",
                fix="use its address, or start it with --allowed-hosts and this name",
            )
        if origin is None and site is None:
            return  # no browser
        if site in {b"same-origin", b"none"} or (
            site is None and origin is not None and _same(origin, host)
        ):
            return
        if origin is not None and (
            origin in self._pages or _name_of(origin.decode("latin-1")) in self._names
        ):
            return
        raise OriginError(
            "a page of another site sent this request, and this service has no API keys",
            fix="use the playground of the service, API keys, or --allowed-origins with the "
            "address of that site",
        )

    def _is_ours(self, host: bytes) -> bool:
        name = _name_of(host.decode("latin-1"))
        if name not in self._names and not _cannot_be_owned(name):
            return False
        if len(self._found) >= 100:
            self._found.clear()
        self._found.add(host)
        return True


def _name_of(authority: str) -> str:
    """Return the name in `name:port` or in an origin, in lower case; empty where there is none."""
    try:
        name = urlsplit(authority if "://" in authority else f"//{authority}").hostname
    except ValueError:
        return ""
    return (name or "").rstrip(".")


def _same(origin: bytes, host: bytes | None) -> bool:
    return host is not None and origin.lower().partition(b"://")[2] == host.lower()


def _cannot_be_owned(name: str) -> bool:
    """Whether no stranger can make this name mean our address: an address, a name without a dot, or
    localhost.
    """
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return bool(name) and "." not in name
    return True


def origins_for(config: ServiceConfig, *, keys_required: bool) -> Origins | None:
    """Return what a service checks; None with API keys, where every request must prove itself."""
    if keys_required:
        return None
    return Origins((config.host, *config.allowed_hosts), config.allowed_origins)
