"""What every page that is written has to be: whole by itself, and readable by everybody."""

from __future__ import annotations

import re
from xml.etree import ElementTree


def assert_needs_nothing_else(page: str, drawings: int) -> None:
    """A page loads nothing, runs nothing, and has this many drawings in colours of its own."""
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "<script" not in page
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(found) == drawings
    for svg in found:
        assert ElementTree.fromstring(svg).get("role") == "img"
        assert not re.search(r"(stroke|fill): ?#(?!none)", svg)  # every colour is one of the page's


def watched(page) -> tuple[list[str], set[str]]:
    """The complaints of an open page (scripts, policy, missing files), and the hosts that it and its workers asked,
    which both grow."""
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda problem: complaints.append(str(problem)))
    page.context.on(
        "request", lambda request: hosts.add(re.sub(r"^\w+://([^:/]+).*", r"\1", request.url))
    )
    return complaints, hosts


def assert_readable(page, width: int) -> None:
    """An open page passes axe (contrast, names of regions and plots, headings, tables), and only its
    tables scroll sideways."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") == width
