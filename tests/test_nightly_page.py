"""From a log to a service that is refreshed every night: every command of docs/nightly.md, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distilrec.bundle.format import read_manifest
from tests import ROOT
from tests.servers import free_port
from tests.small_run import tables

pytestmark = [pytest.mark.slow, pytest.mark.server]

PAGE = (ROOT / "docs" / "nightly.md").read_text()
ROOT_ONLY = ("pip install", "sudo ")  # installed already, and for a machine of one's own


def test_every_command_of_the_page_works(tmp_path):
    made = tables()
    log = made["log"].sort("timestamp", maintain_order=True)
    (tmp_path / "log").mkdir()
    log.head(-60).write_csv(tmp_path / "log" / "2026-11-27.csv")
    log.tail(80).write_csv(tmp_path / "today.csv")
    made["items"].write_csv(tmp_path / "items.csv")
    [settings] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "shop.toml").write_text(settings)
    lines = [line.strip() for line in re.findall(r"(?m)^    (.+)$", PAGE)]
    commands = [line for line in lines if not line.startswith(ROOT_ONLY)]
    assert len(lines) - len(commands) == 3
    script = "\n".join(["set -ex", *commands]).replace("8000", str(free_port()))
    ended = run(script + "\nkill %1; wait %1\n", tmp_path)
    # The gate of so small a log may say no by chance: then nothing has changed, which is right too
    declined = ended.returncode == 1 and "FAILED the gate" in ended.stdout
    assert ended.returncode == 0 or declined, ended.stdout + ended.stderr
    assert "60 new rows" in ended.stderr
    assert '"accepted":1' in ended.stdout
    assert '"rank":5' in ended.stdout
    if not declined:
        version = read_manifest(
            tmp_path / "runs/shop/generations/current/bundle/manifest.json"
        ).model_version
        assert f"service: answers with {version}" in ended.stdout
        assert "distilrec_refresh_rows" in (tmp_path / "refresh.prom").read_text()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("*.key")} == {0}


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script of bash in a folder, with the commands of this environment; what it began ends with it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    trap = "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"
    return subprocess.run(
        ["bash", "-c", trap + script],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
