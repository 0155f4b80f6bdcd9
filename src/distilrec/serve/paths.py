"""From the bytes of a request's path to its endpoint and its parameters.

The bytes are what the caller sent, still with their percent signs. Parameters are decoded once,
after the path has been cut at its slashes, and strictly as UTF-8: nothing is replaced, and every
byte of the path is part of the match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar
from urllib.parse import quote, unquote_to_bytes

from starlette.types import Scope

from distilrec.errors import InvalidIdError

_PARAMETER = re.compile(r"{(\w+)(:path)?}")
_BAD_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")

Target = TypeVar("Target")


class Paths(Generic[Target]):
    """Finds what serves a path. table: by path, with `{name}` for one part and `{name:path}` for
    all that follows.
    """

    def __init__(self, table: Mapping[str, Target]) -> None:
        self._fixed = {path.encode(): target for path, target in table.items() if "{" not in path}
        self._patterns = [(_pattern(path), target) for path, target in table.items() if "{" in path]

    def find(self, path: bytes) -> tuple[Target, Mapping[str, bytes]] | None:
        """Return the target of a path and the bytes of its parameters, None where there
        is none.
        """
        if (target := self._fixed.get(path)) is not None:
            return target, {}
        for pattern, target in self._patterns:
            if match := pattern.fullmatch(path):
                return target, match.groupdict()
        return None


def _pattern(path: str) -> re.Pattern[bytes]:
    text, end = "", 0
    for match in _PARAMETER.finditer(path):
        text += (
            re.escape(path[end : match.start()])
            + f"(?P<{match[1]}>{'.*' if match[2] else '[^/]+'})"
        )
        end = match.end()
    return re.compile((text + re.escape(path[end:])).encode(), re.DOTALL)


def path_of(scope: Scope) -> bytes:
    """Return the bytes of the path as they were sent, without the root that the application is
    mounted at.
    """
    raw: bytes = scope.get("raw_path") or quote(scope["path"], errors="surrogatepass").encode()
    return raw.removeprefix(scope.get("root_path", "").encode())


def texts_of(parameters: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Return the parameters of a path as text. Raises InvalidIdError for bytes that are
    not text.
    """
    return {name: _text(name, raw) for name, raw in parameters}


def _text(name: str, raw: bytes) -> str:
    if _BAD_ESCAPE.search(raw):
        raise InvalidIdError(
            f"the {name} in the path holds a percent sign that is not followed by two hexadecimal "
            "digits",
            fix="write %25 for a percent sign",
            parameter=name,
        )
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidIdError(
            f"the {name} in the path is not UTF-8",
            fix="percent-encode the id as UTF-8",
            parameter=name,
        ) from None
