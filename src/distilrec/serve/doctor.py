"""`distilrec doctor`: try out everything that a service needs, one after the other, to find what
broke a deploy.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distilrec._version import __version__
from distilrec.errors import DistilrecError

if TYPE_CHECKING:
    from distilrec.serve.config import ServiceConfig

Verdict = Literal["ok", "warning", "failed"]
_PACKAGES = (
    "numpy",
    "numba",
    "msgspec",
    "safetensors",
    "starlette",
    "uvicorn",
    "uvloop",
    "prometheus-client",
    "redis",
    "psycopg",
)
_SHOWN_ITEMS = 5
_SLOW_LOAD = 2.0  # seconds


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    what: str
    verdict: Verdict
    text: str


def diagnose(config: ServiceConfig) -> Iterator[Finding]:
    """Yield findings as they come. A failed one means that the service would not start, or not
    answer.
    """
    yield Finding(
        "versions",
        "ok",
        f"distilrec {__version__}, Python {platform.python_version()}, {_versions()}",
    )
    yield from _tried("keys", lambda: _keys(config))
    yield from _tried("kernels", _kernels)
    opened = [*_tried("bundle", lambda: _bundle(config)), *_tried("store", lambda: _store(config))]
    yield from opened
    if all(finding.verdict != "failed" for finding in opened):  # it needs both
        yield from _tried("items", lambda: _items(config))
        yield from _tried("rules", lambda: _rules(config))
    yield from _tried("address", lambda: _address(config))


def _tried(what: str, check: Callable[[], list[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except DistilrecError as problem:
        yield Finding(what, "failed", f"[{problem.code}] {problem}")
    except OSError as problem:
        yield Finding(what, "failed", str(problem))


def _versions() -> str:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} is not installed")
    return ", ".join(versions)


def _keys(config: ServiceConfig) -> list[Finding]:
    from distilrec.serve.keys import read_keys

    keys = read_keys(config.keys)
    return [
        Finding(
            "keys",
            "ok",
            "API keys are required"
            if keys.required
            else "no API keys: every caller may do everything",
        )
    ]


def _kernels() -> list[Finding]:
    from distilrec.engine import kernels

    if kernels.CACHED:
        return [Finding("kernels", "ok", "compiled code is kept on disk")]
    text = (
        "there is no folder to keep compiled code in: every start compiles for about 15 seconds\n"
        "  how to fix: set NUMBA_CACHE_DIR to a folder that the service can write"
    )
    return [Finding("kernels", "warning", text)]


def _bundle(config: ServiceConfig) -> list[Finding]:
    from distilrec.engine import kernels
    from distilrec.engine.recommender import load

    started = time.perf_counter()
    recommender = load(config.bundle, search=config.search)
    recommender.recommend("doctor")
    seconds = time.perf_counter() - started
    m = recommender.manifest
    text = (
        f"model {m.model_version} ({m.kind}, {m.items:,} items), verified and answering after "
        f"{seconds:.2f} s"
    )
    findings = [Finding("bundle", "ok", text)]
    if seconds > _SLOW_LOAD and kernels.CACHED:
        hint = "kernels were compiled just now; the next start takes them from the cache"
        findings.append(Finding("bundle", "warning", hint))
    if not os.access(Path(config.bundle), os.W_OK):
        text = (
            "the folder cannot be written: erased users are ignored, but stay in its history file"
        )
        findings.append(Finding("bundle", "warning", text))
    return findings


def _store(config: ServiceConfig) -> list[Finding]:
    from distilrec.stores.opening import open_store

    store = open_store(config.store, config.store_prefix, config.store_password_file)
    try:
        warnings = store.check()
        store.verify()
        name = type(store).__name__
        return [Finding("store", "ok", f"{name} can be read and written")] + [
            Finding("store", "warning", warning) for warning in warnings
        ]
    finally:
        store.close()


def _items(config: ServiceConfig) -> list[Finding]:
    """Report what the store says about items and the bundle cannot take."""
    from distilrec.engine.recommender import load
    from distilrec.engine.stored import follow_item
    from distilrec.stores.opening import open_store

    store = open_store(config.store, config.store_prefix, config.store_password_file)
    try:
        records, _ = store.items()
    finally:
        store.close()
    if not records:
        return []
    recommender = load(config.bundle, search=config.search)
    problems = [
        (record.item_id, problem)
        for record in records
        for problem in follow_item(recommender, record)
    ]
    if not problems:
        return [
            Finding(
                "items", "ok", f"the bundle takes all that is stored about {len(records):,} items"
            )
        ]
    shown = "\n".join(
        f"  item {item_id!r}: {problem.message}" for item_id, problem in problems[:_SHOWN_ITEMS]
    )
    text = (
        f"{len(problems):,} stored values of items do not fit the bundle and are left out, such "
        f"as\n{shown}\n"
        "  how to fix: PUT the item with a value that fits"
    )
    return [Finding("items", "warning", text)]


def _rules(config: ServiceConfig) -> list[Finding]:
    """Report which rules in the store the bundle cannot follow."""
    from distilrec.engine.recommender import load
    from distilrec.serve.rules import RULES, decoded
    from distilrec.stores.opening import open_store

    store = open_store(config.store, config.store_prefix, config.store_password_file)
    try:
        text = store.setting(RULES)
    finally:
        store.close()
    if text is None:
        return []
    placements = decoded(text)
    recommender = load(config.bundle, search=config.search)
    problems = [
        f"placement {name!r}, {problem.message}"
        for name, rules in placements.items()
        for problem in recommender.check_rules(rules)
    ]
    if not problems:
        return [Finding("rules", "ok", f"{len(placements):,} placements have rules that fit")]
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_ITEMS])
    text = (
        f"{len(problems):,} rules do not fit the bundle and are left out, such as\n{shown}\n"
        "  how to fix: load rules that fit, with POST /v1/rules/load"
    )
    return [Finding("rules", "warning", text)]


def _address(config: ServiceConfig) -> list[Finding]:
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as problem:
            text = f"{config.host}:{config.port} cannot be used: {problem.strerror}"
            return [Finding("address", "failed", text)]
    return [Finding("address", "ok", f"{config.host}:{config.port} is free")]
