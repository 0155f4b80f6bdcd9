from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from playwright.sync_api import Browser, expect, sync_playwright

from distilrec.data.dataset import Dataset
from distilrec.runs.folder import Run, open_run
from distilrec.runs.stages import run_all
from tests import small_run
from tests.servers import PATIENCE, program

_CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


# A busy machine may be slow at any moment: how long an example takes says nothing.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
if (
    "MUTANT_UNDER_TEST" in os.environ
):  # `make mutation`: that a test fails is enough, nobody reads the smallest example
    settings.register_profile(
        "mutation", max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.load_profile("mutation")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's cache, bundle or working folder."""
    for name in ("DISTILREC_BUNDLE", "DISTILREC_CACHE", "DISTILREC_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def small() -> Dataset:
    return small_run.dataset()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole small run: look, do not touch."""
    folder = tmp_path_factory.mktemp("run")
    small_run.write_tables(folder)
    run_all(small_run.small_config(folder), folder)
    return open_run(folder)


@pytest.fixture
def bundle(finished_run: Run, tmp_path: Path) -> Path:
    """A copy of the small run's bundle that a test may damage."""
    return Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=1_000 * PATIENCE)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program("chromium"), args=list(_CHROMIUM)
        )
        yield opened
        opened.close()
