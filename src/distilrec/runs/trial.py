"""Try a bundle on a share of the users of a running service before it answers everybody, and take
it back where it brings less or answers fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from distilrec.bundle.format import read_manifest
from distilrec.errors import ServiceError
from distilrec.runs.served import PATIENT, QUICK, Switch, model_of
from distilrec.serve.client import ask, content_of, service_address
from distilrec.serve.schemas import Metric
from distilrec.settings import Part, Positive, Settings

_EVERY = 10.0  # seconds from one look to the next
_AWAY = 300.0  # seconds that a service may be away, for a restart
_UNFORESEEN = "error"  # code of answers that failed by a fault of the service
_FAULTS, _FAULT_SHARE = 10, 0.01  # so many answers, and of all, may fail
# Where the variant brings hardly anything there are too few groups of users for an interval. By
# chance a fourth of 30 that are expected comes once in a million times (Poisson).
_EXPECTED, _SHORT = 30.0, 0.25

Answered = TypeVar("Answered")


class Trial(Settings, frozen=True):
    """How a bundle is tried. share: of the users who get its answers; minutes: for how long;
    metric: by which its answers are compared with those of the model before.
    """

    share: Part = 0.1
    minutes: Positive = 60.0
    metric: Metric = "clicks"


class _Arm(msgspec.Struct, frozen=True):
    answers: int
    clicked: int
    converted: int

    def brought(self, metric: Metric) -> int:
        """Return the number of answers that brought something."""
        return self.clicked if metric == "clicks" else self.converted


class _Result(msgspec.Struct, frozen=True):
    control: _Arm
    variant: _Arm
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    different: bool = False


class _Experiment(msgspec.Struct, frozen=True):
    name: str
    state: str
    started: float
    metric: Metric
    result: _Result | None = None


class _Experiments(msgspec.Struct, frozen=True):
    experiments: list[_Experiment]


class _Faults(msgspec.Struct, frozen=True):
    failed: float
    answers: float


def try_out(
    service: str,
    bundle: Path,
    trial: Trial | None = None,
    *,
    key: str | None = None,
    every: float = _EVERY,
) -> Switch:
    """Let a share of the users of a service be answered with a bundle for some time, by an
    experiment; then let it answer everybody.

    It is taken back as soon as the interval of the experiment says that it brings less, as it
    brings hardly anything, or as 1% of all answers, and at least 10, fail by a fault of the
    service. A bundle that was taken back once is not tried again. Where this is interrupted, the
    experiment runs on, and the same call goes on with it.

    service, bundle: as for `let_answer`. key: with the scopes recommend, admin and metrics.
    every: seconds between two looks.
    Raises ConfigError for what is no address, ServiceError where the service does not
    answer for five minutes or refuses, BundleErrors.
    """
    trial = trial or Trial()
    base = service_address(service, "service")
    version = read_manifest(bundle / "manifest.json").model_version
    previous = model_of(base, key)
    if previous == version:
        return Switch(True, f"service: answers with {version} already")
    name = f"refresh-{version}"
    before = _faults(base, key)
    known = _named(base, key, name)
    if known is None:
        body = {
            "name": name,
            "bundle": str(bundle.resolve()),
            "share": trial.share,
            "metric": trial.metric,
        }
        known = ask(f"{base}/v1/experiments/start", body, key, _Experiment, PATIENT)
    elif known.state == "stopped":
        return Switch(
            False, f"service: keeps {previous}: {version} was tried before, and taken back"
        )
    end = known.started + 60.0 * trial.minutes
    while True:
        now = _patient(lambda: _named(base, key, name)) or known
        if now.state == "promoted":
            return Switch(True, f"service: answers with {version}, was {previous}; {_brought(now)}")
        if now.state == "stopped":
            return Switch(False, f"service: keeps {previous}: somebody stopped {name}")
        if now.state == "running":
            reason = _harm(now, before, _patient(lambda: _faults(base, key)))
            if reason:
                _change(base, key, "stop", name)
                return Switch(False, f"service: keeps {previous}: {version} {reason}")
            if time.time() >= end:
                _change(base, key, "promote", name)
                continue
        time.sleep(every)


def _named(base: str, key: str | None, name: str) -> _Experiment | None:
    found = ask(f"{base}/v1/experiments", None, key, _Experiments, QUICK).experiments
    return next((one for one in found if one.name == name), None)


def _change(base: str, key: str | None, how: str, name: str) -> None:
    """Stop or promote an experiment."""
    ask(f"{base}/v1/experiments/{how}", {"name": name}, key, _Experiment, PATIENT)


def _faults(base: str, key: str | None) -> _Faults:
    """Return how many answers the processes of the service have given, and how many failed by a
    fault of its own.
    """
    failed = answers = 0.0
    text = content_of(f"{base}/metrics", None, key, QUICK).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "distilrec_request_seconds_count":
                answers += sample.value
            elif sample.name == "distilrec_errors_total":
                failed += sample.value * (sample.labels["code"] == _UNFORESEEN)
    return _Faults(failed, answers)


def _harm(experiment: _Experiment, before: _Faults, now: _Faults) -> str:
    """Return what speaks against the bundle, empty where nothing does."""
    if now.answers < before.answers:  # the service was started again, and counts from 0
        before = _Faults(0.0, 0.0)
    failed, answers = now.failed - before.failed, now.answers - before.answers
    if failed >= max(_FAULTS, _FAULT_SHARE * answers):
        return f"came with {failed:,.0f} answers of {answers:,.0f} that failed"
    result = experiment.result
    if result is None:
        return ""
    if result.different and (result.difference or 0.0) < 0.0:
        return f"was taken back: {_brought(experiment)}"
    control, variant = result.control, result.variant
    there = variant.brought(experiment.metric)
    expected = control.brought(experiment.metric) / max(control.answers, 1) * variant.answers
    if expected >= _EXPECTED and there < _SHORT * expected:
        return (
            f"was taken back: {there:,} of its {variant.answers:,} answers brought something, "
            f"{expected:,.0f} were to be expected"
        )
    return ""


def _brought(experiment: _Experiment) -> str:
    """Return what an experiment has brought, in words."""
    result = experiment.result
    if result is None or result.difference is None:
        return f"too few answers to compare their {experiment.metric}"
    interval = "" if result.low is None else f" [{result.low:+.4f}, {result.high:+.4f}]"
    return f"{experiment.metric} of an answer {result.difference:+.4f}{interval}"


def _patient(question: Callable[[], Answered]) -> Answered:
    """Return an answer, also of a service that is away for a while. Raises ServiceError."""
    until = time.monotonic() + _AWAY
    while True:
        try:
            return question()
        except ServiceError as problem:
            status = problem.context["status"]  # None: it does not answer
            if (isinstance(status, int) and status < 500) or time.monotonic() >= until:
                raise
        time.sleep(1.0)
