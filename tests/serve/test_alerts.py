"""deploy/alerts.yml against the numbers of a real service: each rule names what exists, and fires at the share that it says."""

from __future__ import annotations

import re

import pytest
import yaml

from distilrec.errors import DistilrecError
from tests import ROOT
from tests.servers import Server

pytestmark = pytest.mark.server

RULES = {
    rule["alert"]: " ".join(rule["expr"].split())
    for group in yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
SELECTOR = re.compile(r"(distilrec_\w+)(?:\{([^}]*)\})?(\[\w+\])?")
LABEL = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
# Only what trains or prepares raises these; a service cannot.
NEVER_SERVED = {
    "extra_missing",
    "cluster_failed",
    "training_failed",
    "teacher_invalid",
    "labels_invalid",
    "source_unavailable",
    "folder_held",
}


@pytest.fixture
def server(bundle, tmp_path):
    service = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--max-pending", 1_000)
    yield service
    assert service.stop() == 0


def samples(server) -> list[tuple[str, dict[str, str], float]]:
    found = re.findall(
        r"^(\w+)(?:\{(.*)\})? (\S+)$", server.client.get("/metrics").text, re.MULTILINE
    )
    return [
        (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
        for name, labels, value in found
    ]


def matches(labels: dict[str, str], wanted: str | None) -> bool:
    tests = {
        "=": lambda given, value: given == value,
        "!=": lambda given, value: given != value,
        "=~": lambda given, value: re.fullmatch(value, given) is not None,
        "!~": lambda given, value: re.fullmatch(value, given) is None,
    }
    return all(
        tests[how](labels.get(name, ""), value) for name, how, value in LABEL.findall(wanted or "")
    )


def total(metrics, name: str, wanted: str | None) -> float:
    return sum(
        value for metric, labels, value in metrics if metric == name and matches(labels, wanted)
    )


def fires(rule: str, metrics) -> bool:
    """A rule of sums, rates and gauges of one instance, with what has happened since its start as the rate."""
    text = re.sub(r"sum by \(instance\)|rate\b", "", RULES[rule])
    text = SELECTOR.sub(lambda found: repr(total(metrics, found[1], found[2])), text)
    assert re.fullmatch(r"[\d.e+()/>\s-]+", text), text
    return eval(text)  # numbers and signs only


def test_every_alert_names_metrics_and_labels_that_exist(server):
    server.items("u1")
    server.event("u1", "i1")
    server.client.get("/v1/users/nobody")
    exposed = samples(server)
    for rule, text in RULES.items():
        for name, wanted, _ in SELECTOR.findall(text):
            known = {label for metric, labels, _ in exposed if metric == name for label in labels}
            assert any(metric == name for metric, _, _ in exposed), (
                f"{rule}: there is no metric {name}"
            )
            assert {label for label, _, _ in LABEL.findall(wanted)} <= known, (
                f"{rule}: {name} has not these labels"
            )


def test_the_share_of_unknown_items_is_that_of_the_accepted_events(server):
    def send(number: int, *items: str) -> None:
        server.post(
            "/v1/events",
            events=[
                {"user_id": "u1", "item_id": item, "event_id": f"{number}-{n}"}
                for n, item in enumerate(items)
            ],
        )

    send(1, *["i1"] * 8, *["elsewhere"] * 2)
    assert not fires("DistilrecUnknownItems", samples(server))  # exactly one in five
    send(2, "elsewhere")  # 3 of 11
    for _ in range(5):
        send(1, *["i1"] * 8, *["elsewhere"] * 2)  # sent again: no more unknown than before
    metrics = samples(server)
    counted = {
        labels["outcome"]: n for name, labels, n in metrics if name == "distilrec_events_total"
    }
    assert counted == {"accepted": 11, "unknown_item": 3, "duplicate": 50}
    assert fires("DistilrecUnknownItems", metrics)
    send(3, *["i1"] * 4)  # 3 of 15
    assert not fires("DistilrecUnknownItems", samples(server))


def test_waiting_events_are_compared_with_the_limit_of_this_service(server):
    metrics = samples(server)
    assert total(metrics, "distilrec_events_pending_limit", None) == 1_000
    idle = [sample for sample in metrics if sample[0] != "distilrec_events_pending"]
    assert not fires("DistilrecEventsWait", [*idle, ("distilrec_events_pending", {}, 500.0)])
    assert fires("DistilrecEventsWait", [*idle, ("distilrec_events_pending", {}, 501.0)])


def test_all_failures_of_the_service_are_errors_and_no_mistake_of_a_caller_is():
    (wanted,) = (wanted for name, wanted, _ in SELECTOR.findall(RULES["DistilrecErrors"]))

    def below(kind: type[DistilrecError]) -> list[type[DistilrecError]]:
        return [
            kind,
            *(descendant for child in kind.__subclasses__() for descendant in below(child)),
        ]

    for kind in below(DistilrecError):
        counted = matches({"code": kind.code}, wanted)
        assert counted == (kind.http_status >= 500 and kind.code not in NEVER_SERVED), kind.code


def test_slow_requests_are_those_of_people_and_the_limit_is_a_bound_of_the_histogram(server):
    """With the limit as a bound of the buckets the quantile is above it exactly when more than one in a hundred is."""
    server.items("u1")
    server.client.get("/healthz")
    (wanted,) = (wanted for _, wanted, _ in SELECTOR.findall(RULES["DistilrecSlow"]))
    limit = RULES["DistilrecSlow"].rsplit("> ", 1)[1]
    assert "histogram_quantile(0.99," in RULES["DistilrecSlow"]
    counted = [
        labels
        for name, labels, _ in samples(server)
        if name.endswith("_bucket") and matches(labels, wanted)
    ]
    assert limit in {labels["le"] for labels in counted}
    endpoints = {labels["endpoint"] for labels in counted if "endpoint" in labels}
    assert {"recommend", "rank", "events", "kserve_model_infer"} <= endpoints
    assert not endpoints & {
        "healthz",
        "readyz",
        "metrics",
        "kserve_live",
        "kserve_ready",
        "load_model",
        "rollback",
    }
