"""Plain English in what people read: docstrings, messages, help texts, documents, report and playground."""

from __future__ import annotations

import ast
import re

import pytest

from tests import ROOT

WORDS = re.compile(
    r"\bso many\b|\banew\b|\bwhoever\b|\bnobody\b|\b(?:has|have) not (?:the|a|an|its)\b"
    r"|\b(?:holds|is) no (?:time|text|id|number|user|item|name)\b|\bare (?:loaded|written|read) at once\b"
    r"|\bknowledge (?:and|of|store|from the teacher)\b|\bof whom nothing\b|\bgoes on where\b",
    re.IGNORECASE,
)
CODE = [
    *sorted((ROOT / "src").rglob("*.py")),
    *(
        path
        for name in ("bench", "examples", "fuzz", "release", "docs")
        for path in sorted((ROOT / name).rglob("*.py"))
    ),
]
TEXTS = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *sorted((ROOT / "deploy").iterdir()),
    *sorted((ROOT / "src" / "distilrec" / "report").glob("*.html")),
    *(
        path
        for name in ("playground", "console", "look")
        for path in sorted((ROOT / "src" / "distilrec" / "serve" / name).iterdir())
    ),
]


def strings(code: str) -> str:
    """Return the docstrings, messages and other texts of a Python file."""
    return "\n".join(
        re.sub(r"\s+", " ", node.value)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def found() -> dict[str, list[str]]:
    """Return the listed words of each file that people read."""
    words = {}
    for path in [*CODE, *TEXTS]:
        text = path.read_text(encoding="utf-8")
        text = strings(text) if path.suffix == ".py" else re.sub(r"\s+", " ", text)
        if hits := WORDS.findall(text):
            words[str(path.relative_to(ROOT))] = hits
    return words


def test_all_texts_are_plain_english():
    assert found() == {}, "say it in plain English"


@pytest.mark.parametrize(
    "text",
    ["At most so many students.", "made anew", "Whoever asks", "for nobody", "it has not the scope",
     "holds 'x', which is no time", "a user of whom nothing is known"],
)  # fmt: skip
def test_the_check_sees_them(text):
    assert WORDS.search(text)
    assert WORDS.search(strings(f'def f():\n    """{text}"""'))


def test_ordinary_sentences_pass():
    assert not WORDS.search(
        "There is no bundle yet. It has not been measured. Acknowledged events."
    )
