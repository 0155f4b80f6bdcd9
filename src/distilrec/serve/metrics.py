"""The metrics for Prometheus. Several workers add up theirs through files
(PROMETHEUS_MULTIPROC_DIR).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_NOTED = 1_000
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000)


class Durations:
    """The durations of one endpoint: noted at the price of an append, put into their histogram when
    somebody looks.
    """

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._noted: list[float] = []

    def note(self, seconds: float) -> None:
        """Remembers one duration."""
        self._noted.append(seconds)
        if len(self._noted) >= _NOTED:
            self.flush()

    def flush(self) -> None:
        """Bring the histogram up to date."""
        noted, self._noted = self._noted, []
        for seconds in noted:
            self._histogram.observe(seconds)


class _AllWorkers(CollectorRegistry):
    """What all workers have written into their files, without the models that answered earlier."""

    def collect(self) -> Iterator[Metric]:
        for metric in MultiProcessCollector(CollectorRegistry()).collect():  # type: ignore[no-untyped-call]
            if metric.name == "distilrec_model_info":
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


class Metrics:
    """All metrics of a service; each is described in docs/serving.md."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self._durations: dict[str, Durations] = {}
        self.request_seconds = Histogram(
            "distilrec_request_seconds",
            "Time of a request in the service.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=r,
        )
        self.errors = Counter(
            "distilrec_errors_total", "Answers from 400 on.", ["endpoint", "code"], registry=r
        )
        self.events = Counter(
            "distilrec_events_total", "Events by outcome.", ["outcome"], registry=r
        )
        self.answers = Counter(
            "distilrec_answers_total",
            "Answers with a recommendation_id.",
            ["endpoint", "placement", "model_version"],
            registry=r,
        )
        self.outcomes = Counter(
            "distilrec_outcomes_total",
            "Events that named an answer, by what they said of it.",
            ["outcome", "placement", "model_version"],
            registry=r,
        )
        self.outcome_value = Counter(
            "distilrec_outcome_value_total",
            "Value of the conversions that named an answer.",
            ["placement", "model_version"],
            registry=r,
        )
        self.unknown_context = Counter(
            "distilrec_context_unknown_total",
            "Values of context features that no training event had.",
            ["feature"],
            registry=r,
        )
        self.commit_seconds = Histogram(
            "distilrec_commit_seconds",
            "Time of a commit to the store.",
            buckets=_SECONDS,
            registry=r,
        )
        self.commit_events = Histogram(
            "distilrec_commit_events", "Events that share a commit.", buckets=_COUNTS, registry=r
        )
        self.store_errors = Counter(
            "distilrec_store_errors_total", "Failures of the store.", registry=r
        )
        self.users = self._gauge("distilrec_users_in_memory", "Users whose state is in memory.")
        self.state_bytes = self._gauge(
            "distilrec_state_bytes", "Memory of the users' states and logs."
        )
        self.evicted = self._gauge(
            "distilrec_users_evicted", "Users that left memory since the model was loaded."
        )
        self.pending = self._gauge("distilrec_events_pending", "Events that wait to be stored.")
        self.pending_limit = self._gauge(
            "distilrec_events_pending_limit", "Events that may wait; more are refused."
        )
        self.swaps = Counter(
            "distilrec_model_swaps_total", "Changes of the active model.", ["kind"], registry=r
        )
        self.model = Gauge(
            "distilrec_model_info",
            "1 for the active model.",
            ["model_version"],
            registry=r,
            multiprocess_mode="livemostrecent",
        )
        self._shown = ""

    def durations(self, endpoint: str) -> Durations:
        """Return where the durations of an endpoint are noted."""
        if endpoint not in self._durations:
            self._durations[endpoint] = Durations(self.request_seconds.labels(endpoint))
        return self._durations[endpoint]

    def show_model(self, version: str) -> None:
        """Name the active model."""
        if self._shown not in ("", version):
            # The file that workers share keeps what is only removed here.
            self.model.labels(self._shown).set(0)
            self.model.remove(self._shown)
        self.model.labels(version).set(1)
        self._shown = version

    def flush(self) -> None:
        """Bring all histograms up to date."""
        for durations in self._durations.values():
            durations.flush()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

    def exposition(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        self.flush()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            return generate_latest(_AllWorkers())
        return generate_latest(self.registry)
