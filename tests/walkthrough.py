"""Documents that are walked through: the commands of a page, run in order in one bash, with what each prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests import ROOT
from tests.servers import free_port

_MARK, _END = "@@ ", "@@ end"
_PARTS = re.compile(r"(?ms)^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$|^    ([^\n]+)$")


class Step(NamedTuple):
    """A command, or a block of a language, below a heading of a page."""

    heading: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name that a block gives itself in a comment on its first line."""
        named = re.match(r"(?:#|<!--) ([\w./-]+\.\w+)(?: -->)?\n", self.text)
        return named[1] if named else None

    @property
    def shell(self) -> str:
        """What bash does with it: runs it, or writes the file."""
        if self.language == "bash":
            return self.text
        if self.language == "python":
            return f"python - << 'END'\n{self.text}END"
        return f"mkdir -p $(dirname {self.file})\ncat > {self.file} << 'END'\n{self.text}END"


class Walk(NamedTuple):
    """What the steps of a page have printed; ports: of its services, by those in the page."""

    printed: list[tuple[Step, str]]
    ports: dict[str, int]
    folder: Path

    def below(self, heading: str) -> list[Any]:
        """The lines of JSON that the steps below a heading have printed."""
        lines = [
            line
            for step, text in self.printed
            if step.heading == heading
            for line in text.splitlines()
        ]
        return [json.loads(line) for line in lines if line.startswith(('{"', '["'))]


def steps(name: str) -> list[Step]:
    """The indented lines and the fenced blocks of a page of docs/, in order."""
    heading, found = "", []
    for title, language, block, command in _PARTS.findall((ROOT / "docs" / name).read_text()):
        heading = title or heading
        if block or command:
            found.append(Step(heading, language or "bash", block or command))
    return found


def on_free_ports(text: str, *ports: str) -> tuple[str, dict[str, int]]:
    """A script with free ports in place of those of the page, and which these are."""
    free = {port: free_port() for port in ports}
    for port, other in free.items():
        text = re.sub(rf"\b{port}\b", str(other), text)
    return text, free


def bash(script: str, folder: Path, **popen: Any) -> subprocess.Popen[str]:
    """A script that runs in a folder with the commands of this environment, up to the first that
    fails; what it began ends with it.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | popen.pop("env", {})
    begin = "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\nset -ex\n"
    return subprocess.Popen(
        ["bash", "-c", begin + script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **popen,
    )


@contextmanager
def walked(
    chosen: list[Step], folder: Path, *ports: str, env: dict[str, str] | None = None
) -> Iterator[Walk]:
    """Runs steps, and gives what they printed while what they began still runs. The first thing that
    they began is a service, which ends well.
    """
    marked = [f"echo; echo '{_MARK}{number}'\n{step.shell}" for number, step in enumerate(chosen)]
    last = f"echo; echo '{_END}'\nread -r _ || true\nkill %1\nwait %1\n"
    script, free = on_free_ports("\n".join([*marked, last]), *ports)
    log = folder / "walk.log"
    with (
        log.open("w") as errors,
        bash(script, folder, env=env or {}, stdin=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout
        lines: list[str] = []
        while lines[-1:] != [f"{_END}\n"]:
            line = process.stdout.readline()
            assert line, "".join(lines[-20:]) + log.read_text()[-10_000:]
            lines.append(line)
        printed = re.split(rf"(?m)^{_MARK}\d+\n", "".join(lines[:-1]))[1:]
        yield Walk(list(zip(chosen, printed, strict=True)), free, folder)
    assert process.returncode == 0, log.read_text()[-10_000:]
    assert "unforeseen" not in log.read_text()
