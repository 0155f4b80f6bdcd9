from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings

from tests import servers

# Two test processes share two cores: with a thread for each core in both, and in all commands that
# they start, the threads of torch wait for each other most of the time. Torch reads this at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:  # heavy: loaded by the fixtures that need them
    from playwright.sync_api import Browser

    from distilrec.data import Dataset
    from distilrec.runs import Run

_CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


# A busy machine may be slow at any moment: how long an example takes says nothing.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# `make mutation`: that a test fails is enough, its smallest example is not needed.
if "MUTANT_UNDER_TEST" in os.environ:
    settings.register_profile(
        "mutation", max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.load_profile("mutation")


# What a test needs because of the fixtures that it asks for.
_MARKS = {
    "browser": "chromium",
    "redis_server": "redis",
    "shared_redis": "redis",
    "redis_cluster": "redis",
    "postgresql": "postgresql",
    "mariadb": "mariadb",
}


_MARK_OF_ALL = re.compile(r"^pytestmark = pytest\.mark\.(\w+)$", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves a module unread that `-m "not this and not that"` deselects as a whole: its imports
    cost time."""
    selection = config.option.markexpr
    if not selection or "or" in selection.split() or collection_path.suffix != ".py":
        return None
    found = _MARK_OF_ALL.search(collection_path.read_text(encoding="utf-8"))
    return True if found and f"not {found[1]}" in selection.split(" and ") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests whose fixtures need a server or a browser."""
    for item in items:
        for name in _MARKS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(_MARKS[name])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tells `tests.servers` what the test is marked with, before its fixtures are made."""
    servers.marks = {mark.name for mark in item.iter_markers()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A test that fails leaves none of its services behind: others would meet them."""
    before = len(servers.started)
    try:
        return (yield)
    except BaseException:
        for server in servers.started[before:]:
            server.kill()
        raise


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's cache, bundle or working folder."""
    for name in ("DISTILREC_BUNDLE", "DISTILREC_CACHE", "DISTILREC_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def small() -> Dataset:
    from tests import small_run

    return small_run.dataset()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole small run: look, do not touch."""
    from distilrec.runs import open_run, run_all
    from tests import small_run

    folder = tmp_path_factory.mktemp("run")
    small_run.write_tables(folder)
    run_all(small_run.small_config(folder), folder)
    return open_run(folder)


@pytest.fixture
def bundle(finished_run: Run, tmp_path: Path) -> Path:
    """A copy of the small run's bundle that a test may damage."""
    return Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def bundle_copy(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run's bundle that the tests of a module share."""
    return Path(shutil.copytree(finished_run.bundle, tmp_path_factory.mktemp("shared") / "bundle"))


@pytest.fixture
def bundle_with_repeats(bundle: Path) -> Path:
    """A copy of the small run's bundle whose log is said to have repeats."""
    from distilrec.bundle.format import read_bundle, write_bundle

    read = read_bundle(bundle)
    manifest = msgspec.structs.replace(read.manifest, repeats=True)
    write_bundle(bundle, manifest, read.weights, read.catalogue, read.history)
    return bundle


@pytest.fixture
def two_bundles(finished_run: Run, tmp_path: Path) -> Path:
    """A folder with copies of both bundles of the small run, `one` and `two`."""
    folder = tmp_path / "bundles"
    for name, source in (("one", finished_run.bundle), ("two", finished_run.bundle_baseline)):
        shutil.copytree(source, folder / name)
    return folder


@pytest.fixture
def copied(finished_run: Run, tmp_path: Path) -> Path:
    """A copy of the small run's folder that a test may change."""
    return Path(shutil.copytree(finished_run.folder, tmp_path / "run"))


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[servers.Redis]:
    """A Redis server of the test's own."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = servers.Redis(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.RedisCluster]:
    """A Redis Cluster that the tests of a module share."""
    cluster = servers.RedisCluster(tmp_path_factory.mktemp("redis-cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[servers.PostgreSQL]:
    """A PostgreSQL server that the tests of a module share."""
    with servers.PostgreSQL() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[servers.MariaDB]:
    """A MariaDB server that the tests of a module share."""
    with servers.MariaDB() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    servers.needs("chromium")
    expect.set_options(timeout=1_000 * servers.PATIENCE)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=servers.program("chromium"), args=list(_CHROMIUM)
        )
        yield opened
        opened.close()
