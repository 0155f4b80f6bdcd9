"""Lists that were written as text, as Python, JSON and numpy print them: `['red', 'blue']`,
`["red"]`, `[0.1 0.2]`.
"""

from __future__ import annotations

import json
import re

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ELEMENT = re.compile(
    rf"""\s*(?:(?P<json>"(?:[^"\\]|\\.)*")|(?P<python>'(?:[^'\\]|\\.)*')|(?P<number>{_NUMBER})"""
    r"""|(?P<missing>None|null|nan|NaN)|(?P<flag>True|False|true|false))\s*""",
    re.DOTALL,
)
_NUMBERS = re.compile(rf"\s*{_NUMBER}(?:\s+{_NUMBER})*\s*")
_PAIRS = {"[": "]", "(": ")", "{": "}"}
_WRAPPERS = re.compile(r"(?:frozenset|set|array|list|tuple)\((.*)\)", re.DOTALL)


def parse_list(text: str) -> list[str] | None:
    """Return the texts of a list, a tuple or a set that was printed; None for any other text.
    Missing elements are left out.

    Raises ValueError for text that is such a list by its looks and cannot be read as one.
    """
    text = text.strip()
    if wrapped := _WRAPPERS.fullmatch(text):
        text = wrapped[1].strip()
        if not text:
            return []
    if len(text) < 2 or _PAIRS.get(text[0]) != text[-1]:
        return None
    inside = text[1:-1]
    if not inside.strip():
        return []
    # As numpy prints them.
    if text[0] == "[" and _NUMBERS.fullmatch(inside) and len(inside.split()) > 1:
        return inside.split()
    found, position = [], 0
    while element := _ELEMENT.match(inside, position):
        if element["missing"] is None:
            found.append(_text(element))
        position = element.end()
        if position == len(inside):
            return found
        if inside[position] != ",":
            break
        position += 1
        if not inside[position:].strip():  # a comma after the last, as in a tuple of one
            return found
    # Brackets around one word are nothing special; a quote, a comma or a colon in square or curly
    # ones is.
    if text[0] in "[{" and re.search(r"""['",:]""", inside) and _closes_at_end(text):
        raise ValueError("it looks like a list, and cannot be read as one")
    return None


def _text(element: re.Match[str]) -> str:
    if element["json"] is not None:
        try:
            return str(json.loads(element["json"], strict=False))
        except ValueError:
            return _unescaped(element["json"][1:-1])
    return (
        _unescaped(element["python"][1:-1]) if element["python"] is not None else element[0].strip()
    )


def _unescaped(text: str) -> str:
    named = {"n": "\n", "t": "\t", "r": "\r"}

    def replacement(found: re.Match[str]) -> str:
        code = found[1] or found[2] or found[3]
        return chr(int(code, 16)) if code else named.get(found[4], found[4])

    return re.sub(
        r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})|(.))",
        replacement,
        text,
        flags=re.DOTALL,
    )


def _closes_at_end(text: str) -> bool:
    """Whether the bracket at the beginning is closed by the one at the end, not by an
    earlier one.
    """
    opening, closing, depth = text[0], _PAIRS[text[0]], 0
    for position, character in enumerate(text):
        depth += (character == opening) - (character == closing)
        if depth == 0:
            return position == len(text) - 1
    return False
