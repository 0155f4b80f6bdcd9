"""What a consumer has done since it began, for people and for Prometheus."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from distilrec.files import write_whole


@dataclass(eq=False)
class Tally:
    """Numbers of messages and events."""

    messages: int = 0
    """Messages that were read and whose events, if they had one, are stored."""
    delivered: int = 0
    """Events that were new."""
    duplicates: int = 0
    """Events that were there already: the same event id of the same user."""
    unattributed: int = 0
    """New events that name an answer and do not count as its outcome."""
    dead: Counter[str] = field(default_factory=Counter)
    """Dead letters by reason."""
    expired: int = 0
    """Messages that the source had removed before they were read, as far as it says so."""
    retries: int = 0
    """How often something was tried again, because source, service or store was away."""
    lag: float = math.nan
    """Messages that wait in the source; NaN where that is not known."""
    last_commit: float = 0.0
    """When messages were acknowledged to the source last, in seconds since 1970; 0 for never."""

    @property
    def line(self) -> str:
        """What a person is told at the end."""
        said = f"{self.messages:,} messages: {self.delivered:,} new events, "
        said += f"{self.duplicates:,} that were there already, {self.dead.total():,} dead letters"
        if self.dead:
            by_reason = ", ".join(f"{why} {n:,}" for why, n in sorted(self.dead.items()))
            said += f" ({by_reason})"
        if self.expired:
            said += f"; {self.expired:,} messages were gone before they were read"
        if self.unattributed:
            said += f"; {self.unattributed:,} events name an answer that they do not count for"
        return said

    def write(self, path: Path) -> None:
        """Write the metrics in the text format of Prometheus, whole or not at all."""
        registry = CollectorRegistry()
        registry.register(self)
        write_whole(path, generate_latest(registry))
        path.chmod(0o644)  # the exporter is another user

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as a collector of Prometheus does."""
        for name, what, number in (
            ("messages", "Messages that were read and dealt with.", self.messages),
            ("unattributed", "Events that name an answer and do not count.", self.unattributed),
            ("expired", "Messages that were gone before they were read.", self.expired),
            ("retries", "Tries again of a source, a service or a store.", self.retries),
        ):
            yield CounterMetricFamily(f"distilrec_consume_{name}", what, value=number)
        events = CounterMetricFamily(
            "distilrec_consume_events", "Events by outcome.", labels=["outcome"]
        )
        events.add_metric(["delivered"], self.delivered)
        events.add_metric(["duplicate"], self.duplicates)
        yield events
        letters = CounterMetricFamily(
            "distilrec_consume_dead_letters", "Messages without a usable event.", labels=["reason"]
        )
        for reason, number in self.dead.items():
            letters.add_metric([reason], number)
        yield letters
        yield GaugeMetricFamily(
            "distilrec_consume_lag", "Messages that wait in the source.", value=self.lag
        )
        if self.last_commit:
            yield GaugeMetricFamily(
                "distilrec_consume_last_commit_timestamp_seconds",
                "When messages were acknowledged to the source last.",
                value=self.last_commit,
            )
