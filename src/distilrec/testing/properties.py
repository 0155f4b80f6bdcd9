"""How the property tests of the contracts run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A contract is inherited by several classes, and its examples share the fixtures of a test.
of_contract = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
