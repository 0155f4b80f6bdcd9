"""The gate: thresholds in a small TOML file that an exported bundle must meet before it goes
anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from distilrec.errors import ConfigError
from distilrec.settings import Settings, read_settings


class Thresholds(Settings, frozen=True):
    """What an exported bundle must meet before it is deployed, by the name of a metric."""

    quality: dict[str, float] = msgspec.field(default_factory=dict)
    """Metrics of the test part, at least."""
    retention: dict[str, float] = msgspec.field(default_factory=dict)
    """Shares of the teacher's metrics, at least."""
    improvement: dict[str, float] = msgspec.field(default_factory=dict)
    """Lower ends of the 95% intervals of student minus the same student without distillation, at
    least.
    """
    refresh: dict[str, float] = msgspec.field(default_factory=dict)
    """Lower ends of the 95% intervals of a refreshed student minus the bundle before it, at least.
    """
    latency: dict[str, float] = msgspec.field(default_factory=dict)
    """`p50` and `p99` of a request in microseconds, at most."""
    size: dict[str, float] = msgspec.field(default_factory=dict)
    """`parameters` and `bytes` of the model, at most."""


class Check(msgspec.Struct, frozen=True):
    """One threshold and what was measured."""

    what: str
    measured: float
    threshold: float
    at_least: bool

    @property
    def passed(self) -> bool:
        return self.measured >= self.threshold if self.at_least else self.measured <= self.threshold

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        bound = "at least" if self.at_least else "at most"
        return f"{verdict:>6}  {self.what}: {self.measured:.6g} ({bound} {self.threshold:.6g})"


def read_thresholds(path: Path | str) -> Thresholds:
    """Return the thresholds of a TOML file. Raises FileMissingError, and ConfigError for anything
    unknown or an empty file.
    """
    thresholds = read_settings(
        path, Thresholds, fix="check the path, or write one: docs/commands.md shows how"
    )
    if not any(getattr(thresholds, name) for name in Thresholds.__struct_fields__):
        raise ConfigError(
            f"{path} has no threshold",
            fix='for example [quality] and "ndcg@10" = 0.1',
            file=str(path),
        )
    return thresholds


def check(thresholds: Thresholds, measured: Mapping[str, Mapping[str, float]]) -> list[Check]:
    """Compare with the thresholds; measured: section -> name -> value. Raises ConfigError for a
    name that is not measured.
    """
    checks = []
    for section in Thresholds.__struct_fields__:
        for name, threshold in getattr(thresholds, section).items():
            if name not in measured[section]:
                names = (
                    ", ".join(measured[section])
                    or "nothing, because there is nothing to compare with"
                )
                raise ConfigError(
                    f"the gate has a threshold for {section}.{name}, which is not measured",
                    fix=f"measured under {section}: {names}",
                    parameter=f"{section}.{name}",
                )
            checks.append(
                Check(
                    f"{section} {name}",
                    measured[section][name],
                    threshold,
                    section not in ("latency", "size"),
                )
            )
    return checks
