"""Ask a running service, over HTTP."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Any, TypeVar

import msgspec

from distilrec.errors import ConfigError, ServiceError

KEY_VARIABLE = "DISTILREC_KEY"
"""The environment variable with the API key of a service."""

Body = TypeVar("Body")


class _Problem(msgspec.Struct, frozen=True):
    message: str
    code: str
    fix: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: _Problem


def service_address(service: str, parameter: str) -> str:
    """Return the address of a service without a slash at its end. Raises ConfigError for what is no
    address.
    """
    if not service.startswith(("http://", "https://")):
        raise ConfigError(
            f"{service!r} is no address of a service",
            fix="give one such as http://127.0.0.1:8000",
            parameter=parameter,
        )
    return service.rstrip("/")


def ask(url: str, body: object, key: str | None, kind: type[Body], seconds: float) -> Body:
    """Return the answer of a service, which is JSON: to GET, or to POST where there is a body.

    key: where the service wants one; seconds: until an answer. Raises ConfigError for a key that no
    header holds, and ServiceError; its `context`
    has the `status` (None without an answer), the `code` of the error and `retry_after` in seconds.
    """
    try:
        return msgspec.json.decode(content_of(url, body, key, seconds), type=kind)
    except msgspec.MsgspecError as problem:
        raise _no_answer(url, problem) from None


def content_of(url: str, body: object, key: str | None, seconds: float) -> bytes:
    """Return the bytes of an answer. Raises ServiceError, as `ask`."""
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {_checked(key)}"
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - http or https, checked
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as refused:
        raise _refusal(url, refused) from None
    except (OSError, http.client.HTTPException) as problem:
        raise _no_answer(url, problem) from None


def _checked(key: str) -> str:
    """Return a key without the line end of its file. Raises ConfigError, which does not show it."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the API key in {KEY_VARIABLE} holds characters that no key has",
            fix="copy it again, without the words before it",
            parameter=KEY_VARIABLE,
        )
    return key


def _no_answer(url: str, problem: Exception) -> ServiceError:
    return ServiceError(
        f"{url} gives no answer of a distilrec service: {problem}",
        fix="start the service, or correct its address; the same command tries again",
        status=None,
        code=None,
        retry_after=None,
    )


def _refusal(url: str, refused: urllib.error.HTTPError) -> ServiceError:
    """Return the error for an answer that is one."""
    said = _problem(refused)
    hint = f"; a key comes from the environment variable {KEY_VARIABLE}"
    return ServiceError(
        f"{url} answers {refused.code}: {said.message}" + (f" ({said.code})" if said.code else ""),
        fix=(said.fix or "see the log of the service")
        + (hint if refused.code in {401, 403} else ""),
        status=refused.code,
        code=said.code or None,
        retry_after=_seconds(refused.headers.get("retry-after")),
    )


def _problem(refused: urllib.error.HTTPError) -> _Problem:
    try:
        return msgspec.json.decode(refused.read(), type=_Refusal).error
    except (OSError, http.client.HTTPException, msgspec.MsgspecError):
        return _Problem(str(refused.reason), "")


def _seconds(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):  # none, or a date
        return None
