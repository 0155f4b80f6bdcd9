"""Read and check the parameters of a request that are not in its body, and the limits on both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

from distilrec.engine.filters import Filter, values_of
from distilrec.engine.recommender import Recommender
from distilrec.errors import ConfigError, RequestError
from distilrec.ids import Id, as_id
from distilrec.serve.http import Call

_MAX_LISTED = 500
# What one filter may name: more is refused.
MAX_VALUES = 10_000
_MAX_CONDITIONS = 32


def id_of(call: Call, name: str) -> str:
    """Return the id in the path of a request. Raises InvalidIdError."""
    return as_id(call.path[name], name)


def text_of(call: Call, name: str) -> str:
    """Return a text of the query string, empty without it. Raises RequestError."""
    return _query(call).get(name, "")


def limit_of(call: Call) -> int:
    """Return the length of a list that the query string asks for. Raises RequestError and
    ConfigError.
    """
    text = _query(call).get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError("limit is not a number", fix="give for example ?limit=20")
    if not 1 <= int(text) <= _MAX_LISTED:
        raise ConfigError(
            f"limit is {int(text)}",
            fix=f"give a number from 1 to {_MAX_LISTED}",
            parameter="limit",
        )
    return int(text)


def known_items(
    recommender: Recommender, item_ids: Sequence[Id], *, skip: bool
) -> tuple[list[str], list[str]]:
    """Return the ids of a request, each once, and apart from them, with `skip`, those of items that
    the model does not know. Raises InvalidIdError.
    """
    items = list(dict.fromkeys(as_id(item, "item_id") for item in item_ids))
    if not skip:
        return items, []
    known = {item for item in items if recommender.knows_item(item)}
    return [item for item in items if item in known], [i for i in items if i not in known]


def check_limit(what: str, given: int, limit: int) -> None:
    """Raise RequestError where a request asks for more than the service gives in one answer."""
    if given > limit:
        raise RequestError(
            f"{what}: {given:,} is more than the limit of {limit:,}",
            fix="ask for less in one request",
        )


def check_filter(chosen: Filter) -> None:
    """Raise RequestError for a filter that would take longer than other requests can wait."""
    check_limit("ids and categories in a filter", values_of(chosen), MAX_VALUES)
    check_limit("conditions in a filter", len(chosen.attributes), _MAX_CONDITIONS)


def inside(root: Path, name: str, what: str, parameter: str) -> Path:
    """Return a path inside the bundle root, absolute. Raises ConfigError outside of it: a request
    must not open any file it likes. what: names it in the message.
    """
    try:
        resolved = (root / name).resolve()
        resolved.exists()
    except (OSError, ValueError):  # too long, or with characters that no path has
        raise ConfigError(
            f"the name of the {what} cannot be a path",
            fix="name a path inside the bundle root",
            parameter=parameter,
        ) from None
    if not resolved.is_relative_to(root.resolve()):
        raise ConfigError(
            f"the {what} is outside the bundle root of this service",
            fix="name one inside it, or start the service with another --bundle-root",
            parameter=parameter,
        )
    return resolved


def _query(call: Call) -> dict[str, str]:
    try:
        parameters = parse_qs(
            call.query.decode(), keep_blank_values=True, errors="strict", max_num_fields=20
        )
    except (UnicodeDecodeError, ValueError) as problem:
        raise RequestError(
            f"the query string cannot be read: {problem}", fix="encode it as UTF-8"
        ) from None
    return {name: values[-1] for name, values in parameters.items()}
