"""From a log to a service that is refreshed every night: every command of docs/nightly.md, in order."""

from __future__ import annotations

import subprocess

import pytest

from distilrec.bundle.format import read_manifest
from tests.small_run import tables
from tests.walkthrough import bash, on_free_ports, steps

pytestmark = [pytest.mark.slow, pytest.mark.server]

PAGE = steps("nightly.md")
ROOT_ONLY = ("pip install", "sudo ")  # installed already, and for a machine of one's own


def test_every_command_of_the_page_works(tmp_path):
    made = tables()
    log = made["log"].sort("timestamp", maintain_order=True)
    (tmp_path / "log").mkdir()
    log.head(-60).write_csv(tmp_path / "log" / "2026-11-27.csv")
    log.tail(80).write_csv(tmp_path / "today.csv")
    made["items"].write_csv(tmp_path / "items.csv")
    [settings] = [step.text for step in PAGE if step.language == "toml"]
    (tmp_path / "shop.toml").write_text(settings)
    lines = [step.text for step in PAGE if step.language == "bash"]
    commands = [line for line in lines if not line.startswith(ROOT_ONLY)]
    assert len(lines) - len(commands) == 3
    script, _ = on_free_ports("\n".join([*commands, "kill %1; wait %1"]), "8000")
    with bash(script, tmp_path, stderr=subprocess.PIPE) as process:
        printed, said = process.communicate()
    # The gate of so small a log may say no by chance: then nothing has changed, which is right too
    declined = process.returncode == 1 and "FAILED the gate" in printed
    assert process.returncode == 0 or declined, printed + said
    assert "60 new rows" in said
    assert '"accepted":1' in printed
    assert '"rank":5' in printed
    if not declined:
        version = read_manifest(
            tmp_path / "runs/shop/generations/current/bundle/manifest.json"
        ).model_version
        assert f"service: answers with {version}" in printed
        assert "distilrec_refresh_rows" in (tmp_path / "refresh.prom").read_text()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("*.key")} == {0}
