"""Let a running service answer with another bundle, over HTTP."""

from __future__ import annotations

from pathlib import Path

import msgspec

from distilrec.bundle.format import read_manifest
from distilrec.serve.client import ask, service_address

QUICK, PATIENT = 30.0, 900.0
"""Seconds until an answer, and until that of a load, which is shadowed before it answers."""


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
    base = service_address(service, "service")
    version = read_manifest(bundle / "manifest.json").model_version
    if model_of(base, key) == version:
        return Switch(True, f"service: answers with {version} already")
    wanted = {"bundle": str(bundle.resolve()), "min_agreement": min_agreement}
    loaded = ask(f"{base}/v1/model/load", wanted, key, _Loaded, PATIENT)
    shadow = loaded.shadow
    agreement = "" if shadow.agreement is None else f", {shadow.agreement:.0%} of the items alike"
    shadowed = f"{shadow.requests:,} requests shadowed{agreement}"
    if loaded.switched:
        return Switch(
            True, f"service: answers with {version}, was {loaded.previous_version}; {shadowed}"
        )
    return Switch(False, f"service: did not switch to {version}: {loaded.reason}; {shadowed}")


def model_of(base: str, key: str | None) -> str:
    """Return the version of the model that answers. Raises ServiceError."""
    return ask(f"{base}/v1/model", None, key, _Model, QUICK).model_version
