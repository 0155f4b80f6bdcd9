"""Let a running service answer with another bundle, over HTTP."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from distilrec.bundle.format import read_manifest
from distilrec.errors import ConfigError, ServiceError

KEY_VARIABLE = "DISTILREC_KEY"
"""The environment variable with the API key of a service."""
_QUICK, _PATIENT = 30.0, 900.0  # seconds until an answer; a load is shadowed before it answers

Body = TypeVar("Body")


class Switch(msgspec.Struct, frozen=True):
    """What a service did with a bundle. switched: whether it answers with it now; line: what it
    said.
    """

    switched: bool
    line: str


class _Model(msgspec.Struct, frozen=True):
    model_version: str


class _Shadow(msgspec.Struct, frozen=True):
    requests: int
    agreement: float | None = None


class _Loaded(msgspec.Struct, frozen=True):
    switched: bool
    previous_version: str
    shadow: _Shadow
    reason: str = ""


class _Problem(msgspec.Struct, frozen=True):
    message: str
    code: str
    fix: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: _Problem


def let_answer(
    service: str, bundle: Path, *, key: str | None = None, min_agreement: float = 0.0
) -> Switch:
    """Let a service answer with a bundle, unless it does already.

    The service shadows the latest requests first, and does not switch where both models agree on a
    smaller share of the items than `min_agreement`. service: its address, such as
    http://127.0.0.1:8000, on a machine that has the bundle at the same path, inside the bundle root
    of the service. key: with the scopes recommend and admin, where the service wants one.
    Raises ConfigError for what is no address, ServiceError where the service does not answer or
    refuses, BundleErrors.
    """
    if not service.startswith(("http://", "https://")):
        raise ConfigError(
            f"{service!r} is no address of a service",
            fix="give one such as http://127.0.0.1:8000",
            parameter="service",
        )
    base, version = service.rstrip("/"), read_manifest(bundle / "manifest.json").model_version
    if _asked(f"{base}/v1/model", None, key, _Model, _QUICK).model_version == version:
        return Switch(True, f"service: answers with {version} already")
    wanted = {"bundle": str(bundle.resolve()), "min_agreement": min_agreement}
    loaded = _asked(f"{base}/v1/model/load", wanted, key, _Loaded, _PATIENT)
    shadow = loaded.shadow
    agreement = "" if shadow.agreement is None else f", {shadow.agreement:.0%} of the items alike"
    shadowed = f"{shadow.requests:,} requests shadowed{agreement}"
    if loaded.switched:
        return Switch(
            True, f"service: answers with {version}, was {loaded.previous_version}; {shadowed}"
        )
    return Switch(False, f"service: did not switch to {version}: {loaded.reason}; {shadowed}")


def _asked(
    url: str, body: dict[str, Any] | None, key: str | None, kind: type[Body], seconds: float
) -> Body:
    """Return the answer of a service: to GET, or to POST where there is a body."""
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - http or https, checked
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            return msgspec.json.decode(answer.read(), type=kind)
    except urllib.error.HTTPError as refused:
        raise _refusal(url, refused) from None
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as problem:
        raise ServiceError(
            f"{url} gives no answer of a distilrec service: {problem}",
            fix="start the service, or correct its address; the same command tries again",
        ) from None


def _refusal(url: str, refused: urllib.error.HTTPError) -> ServiceError:
    """Return the error for an answer that is one."""
    try:
        said = msgspec.json.decode(refused.read(), type=_Refusal).error
    except (OSError, msgspec.MsgspecError):
        said = _Problem(str(refused.reason), "")
    hint = f"; a key comes from the environment variable {KEY_VARIABLE}"
    return ServiceError(
        f"{url} answers {refused.code}: {said.message}" + (f" ({said.code})" if said.code else ""),
        fix=(said.fix or "see the log of the service")
        + (hint if refused.code in {401, 403} else ""),
    )
