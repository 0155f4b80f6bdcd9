"""A metric is one function and one row of `QUALITY`; comparison, manifest and gate take it from there."""

from __future__ import annotations

import pytest

from distilrec import runs
from distilrec.bundle.format import read_bundle
from distilrec.measure import metrics
from distilrec.measure.ranking import questions, rank
from distilrec.report.comparison import STUDENT, TEACHER, BundleScorer
from distilrec.report.gate import Thresholds

pytestmark = pytest.mark.slow


def misses(ranking, k):
    """1 for a user of whose held-out items none is among the first K."""
    return 1.0 - metrics.hit_rate(ranking, k)


@pytest.fixture
def run(copied, monkeypatch):
    """A run that was trained before the metric was added."""
    monkeypatch.setitem(metrics.QUALITY, "misses", misses)
    return runs.open_run(copied)


def test_it_is_in_the_comparison_the_manifest_and_the_gate(run):
    dataset = runs.open_data(run)
    comparison = runs.evaluate(run, dataset)
    interval = comparison.row(STUDENT).quality["misses@10"]
    asked = rank(BundleScorer(run.bundle, dataset), questions(dataset, "test"), 10)
    assert interval.mean == pytest.approx(misses(asked, 10).mean())
    assert interval.low <= interval.mean <= interval.high
    assert "misses@10" in comparison.row(TEACHER).quality
    assert read_bundle(run.bundle).manifest.metrics["misses@10"] == interval.mean
    at_least = {"misses@10": 0.0}
    checks = runs.gate(
        run,
        dataset,
        Thresholds(quality=at_least, retention=at_least, improvement={"misses@10": -1.0}),
    )
    assert [check.passed for check in checks] == [True] * 3
    assert checks[0].measured == pytest.approx(interval.mean)
