"""Tables on object storage: s3://, gs:// and az://. The files that an address stands for are copied
into a folder and read there like any others.

Credentials and endpoints come from the environment, by the names that the object_store crate reads
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from distilrec.data.paths import DELTA_LOG, refuse_delta
from distilrec.errors import (
    ConfigError,
    FileMissingError,
    SourceUnavailableError,
    first_line,
    missing_extra,
)
from distilrec.files import refused_by_system

SCHEMES = ("s3", "gs", "az")
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_TIMEOUT = 30  # seconds that retries of one request may take


def is_remote(source: object) -> bool:
    """Return whether a source is an address on object storage."""
    return isinstance(source, str) and source.partition("://")[0] in SCHEMES and "://" in source


def copy_here(address: str, scratch: Path) -> Path:
    """Copy the objects of an address into a folder, and return the local path that stands for them.

    address: one object, a folder with its partitions, or a pattern. Raises SourceUnavailableError
    where the storage does not answer or refuses, FileMissingError without an object, ConfigError
    for an address with a password, and MissingExtraError without obstore.
    """
    url = urlsplit(address)
    if not url.netloc or "@" in url.netloc:
        raise ConfigError(
            "the address of a table on object storage names no bucket, or holds a password",
            fix="write s3://bucket/path; credentials come from the environment",
            parameter="data",
        )
    wanted, root = address.split("://", 1)[1].partition("/")[2].strip("/"), scratch / "remote"
    root.mkdir(parents=True, exist_ok=True)
    try:
        import obstore
        from obstore.exceptions import BaseError
    except ImportError:
        raise missing_extra("obstore", "cloud") from None
    try:
        store = _store(f"{url.scheme}://{url.netloc}")
        copied = 0
        names = _names(obstore.list(store, prefix=_prefix(wanted) or None))
        refuse_delta(address, any(name.startswith(f"{wanted}/{DELTA_LOG}/") for name in names))
        for name in names:
            if not _is_wanted(name, wanted):
                continue
            target = root / name
            if _is_skipped(name, wanted):
                (root / wanted / PurePosixPath(name).relative_to(wanted).parts[0]).mkdir(
                    parents=True, exist_ok=True
                )  # counted by the reader
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for piece in obstore.get(store, name).stream():
                    file.write(piece)
            copied += 1
    except (BaseError, OSError) as problem:
        if refused := refused_by_system(problem, root):
            raise refused from None
        raise SourceUnavailableError(
            f"{address} cannot be read: {first_line(problem)}",
            fix="check the address, and the endpoint and credentials in the environment",
            file=address,
        ) from None
    if not copied:
        raise FileMissingError(
            f"{address} does not exist, and no objects match it",
            fix="check the address",
            file=address,
        )
    return root / wanted


def _store(bucket: str) -> Any:
    from obstore.store import from_url

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return from_url(
        bucket,
        client_options={"allow_http": endpoint.startswith("http://")},
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=_TIMEOUT)},
    )


def _names(batches: Any) -> list[str]:
    return sorted(found["path"] for batch in batches for found in batch if found["size"])


def _prefix(wanted: str) -> str:
    """Return the folders of a pattern before its first part with a wildcard."""
    parts = wanted.split("/")
    first = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
    if first == len(parts):
        first -= 1  # the object itself lies in this folder
    return "/".join(parts[:first])


def _is_wanted(name: str, wanted: str) -> bool:
    if has_magic(wanted):
        return re.fullmatch(_pattern(wanted), name) is not None
    if name == wanted:
        return True
    inside = name.removeprefix(f"{wanted}/").split("/")
    return name.startswith(f"{wanted}/") and not any(part[0] in "._" for part in inside)


def _is_skipped(name: str, wanted: str) -> bool:
    """Return whether an object lies in a folder of the table that is no partition."""
    if has_magic(wanted) or name == wanted:
        return False
    return any("=" not in part for part in name.removeprefix(f"{wanted}/").split("/")[:-1])


def _pattern(wanted: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", wanted)
    return "".join(
        part if part.startswith("[") else _WILDCARDS.get(part, re.escape(part)) for part in parts
    )
