"""What an experiment has brought so far, from the outcomes of the answers of its arms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from distilrec.confidence import Arm, compare_arms
from distilrec.serve.assignment import GROUPS
from distilrec.serve.experiment_log import Experiment
from distilrec.serve.outcomes import Outcomes, Provenance
from distilrec.serve.schemas import ArmResult, ExperimentResult, Metric
from distilrec.stores.outcomes import DAY, OUTCOME_DAYS

_MEASURES = ("answers", "clicked", "converted", "value")
_OF_METRIC: dict[Metric, str] = {"clicks": "clicked", "conversions": "converted", "value": "value"}
Sums = NDArray[np.float64]


async def results_of(
    experiments: Sequence[Experiment], outcomes: Outcomes
) -> dict[str, ExperimentResult]:
    """Return what the arms of experiments have brought, by name. Raises StoreErrors."""
    if not experiments:
        return {}
    last = int(time.time()) // DAY
    first = min(int(one.started) // DAY for one in experiments)
    found = await outcomes.between(max(first, last - OUTCOME_DAYS + 1), last)
    sums = await asyncio.to_thread(sums_by_group, found, [one.name for one in experiments])
    return {one.name: _result(one, sums[one.name]) for one in experiments}


def sums_by_group(
    found: Mapping[tuple[int, Provenance, int], Mapping[str, float]], experiments: Iterable[str]
) -> dict[str, Sums]:
    """Return the sums of experiments, (arms, measures, groups), the control first; measures:
    answers, answers with a click and with a conversion, and the value.
    """
    sums = {name: np.zeros((2, len(_MEASURES), GROUPS)) for name in experiments}
    for (_, provenance, _), amounts in found.items():
        name, _, arm = provenance.variant.partition("/")
        if name not in sums:
            continue
        for number, measure in enumerate(_MEASURES):
            place = int(arm == "variant"), number, provenance.group
            sums[name][place] += amounts.get(measure, 0.0)
    for one in sums.values():
        # A process that was killed has not stored the answers of its last half second.
        one[:, 0] = np.maximum(one[:, 0], one[:, 1:3].max(1))
    return sums


def _result(experiment: Experiment, sums: Sums) -> ExperimentResult:
    measure = _MEASURES.index(_OF_METRIC[experiment.metric])
    control, variant = (Arm(arm[0], arm[measure]) for arm in sums)
    found = compare_arms(control, variant, planned=experiment.planned)
    return ExperimentResult(
        _arm(sums[0], found.control),
        _arm(sums[1], found.variant),
        found.difference,
        found.low,
        found.high,
        found.p_value,
        found.different,
    )


def _arm(sums: Sums, mean: float | None) -> ArmResult:
    answers, clicked, converted, value = sums.sum(1).tolist()
    return ArmResult(round(answers), round(clicked), round(converted), value, mean)
