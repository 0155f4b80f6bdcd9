"""How likely each item is to be a user's next one, and lists by what showing an item is worth.

p_i = exp(s_i / T) / sum_j exp(s_j / T), with the temperature T of the bundle (Guo et al. 2017, sec.
4.2).
The sum is over all candidates: the available items of the whole catalogue, without those that the
user has had where these are left out. A filter is a choice of the one who asks, and changes nothing
about what the user would do: the sum does not depend on it, nor on the search or on k.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from distilrec.bundle.manifest import Manifest
from distilrec.engine.answers import ValuedItem
from distilrec.engine.diversity import diversified, pool_of
from distilrec.engine.items import Floats, Mask, Places
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.errors import ConfigError
from distilrec.features.attributes import ItemAttributes

MAX_WEIGHTS = 32  # attributes of an objective


class Objective(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an item is worth when it is the user's next one: `probability`, plus the weight of each
    of `attributes`, which are numbers, times the item's value.

    An item is ranked by its probability times this, the expected worth of showing it:
    {"attributes": {"price": 1}} is price x probability. An attribute that the item does not have
    counts 0.
    """

    probability: float = 0.0
    attributes: dict[str, float] = {}


class Asked(NamedTuple):
    """Who asks, and what may be answered.

    state, features: of the user, as the runtime takes them. seen: items that the user has had and
    that are no candidates. available: mask of all items that may be recommended; passing: of those
    that pass the filter too; both (items,) uint8, empty for all.
    """

    state: Floats
    features: Floats
    seen: Places
    available: Mask
    passing: Mask


class Worth(NamedTuple):
    """What each item is worth by an objective. whole: (items,); parts: what each name adds."""

    whole: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]


class Likely(NamedTuple):
    """Scores and probabilities of all items, (items,) float32 each; the probability of an item that
    is no candidate is 0.
    """

    scores: Floats
    probabilities: Floats


def temperature_of(manifest: Manifest) -> float:
    """Return the temperature of a bundle. Raises ConfigError where it has none."""
    if manifest.calibration is UNSET:
        raise ConfigError(
            f"the bundle of model {manifest.model_version} has no temperature: its scores cannot "
            "be made probabilities",
            fix="export the student again with this version of distilrec, from a log with a "
            "validation part; a student with differential privacy has none",
            parameter="probabilities",
        )
    return manifest.calibration.temperature


def likely(runtime: Runtime, asked: Asked, temperature: float) -> Likely:
    """Return the probabilities of all items for a user, whose sum is 1 where there are candidates.

    One pass over all item vectors, whatever the search.
    """
    scores = runtime.scores(runtime.query(asked.state, asked.features))
    shares = scores.copy()
    shares[asked.seen] = -np.inf
    if len(asked.available):
        shares[asked.available == 0] = -np.inf
    largest = shares.max(initial=-np.inf)
    if np.isneginf(largest):
        return Likely(scores, np.zeros_like(scores))
    shares -= largest
    shares *= np.float32(1 / temperature)
    np.exp(shares, out=shares)
    shares /= np.float32(shares.sum(dtype=np.float64))
    return Likely(scores, shares)


def worth_of(objective: Objective, attributes: ItemAttributes) -> Worth:
    """Return what each item is worth. Raises ConfigError for an objective that weighs nothing, for
    weights that are not finite, and for attributes that are unknown or are not numbers.
    """
    if "probability" in objective.attributes:
        raise _unusable(
            "an attribute named 'probability' cannot be weighed", "rename it", "probability"
        )
    weights = {"probability": objective.probability, **objective.attributes}
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise _unusable(f"the weight of {name!r} is {weight}", "give finite numbers", name)
    if not any(weights.values()):
        raise _unusable(
            "the objective weighs nothing", 'give weights, such as {"attributes": {"price": 1}}'
        )
    if len(objective.attributes) > MAX_WEIGHTS:
        raise _unusable(
            f"the objective weighs {len(objective.attributes)} attributes",
            f"weigh at most {MAX_WEIGHTS}",
        )
    parts = {}
    if objective.probability:
        parts["probability"] = np.full(attributes.items, float(objective.probability))
    for name, weight in objective.attributes.items():
        if name not in attributes.numbers:
            known = ", ".join(sorted(attributes.numbers)) or "none"
            what = "is not a number" if name in attributes.categories else "is unknown"
            raise _unusable(
                f"the attribute {name!r} {what}; attributes that are numbers: {known}",
                "weigh attributes that are numbers",
                name,
            )
        with np.errstate(over="ignore"):
            parts[name] = weight * attributes.numbers[name]  # NaN where an item has none
    whole = np.nansum(list(parts.values()), axis=0)
    if not np.isfinite(whole).all():
        raise _unusable("the worth of an item is more than a float can hold", "weigh less")
    return Worth(whole, parts)


def best_by_worth(
    runtime: Runtime,
    kernels: ModuleType,
    asked: Asked,
    found: Likely,
    worth: Worth,
    k: int,
    diversity: float,
) -> Places:
    """Return the k items with the highest expected worth that pass the filter, best first; equal
    ones in the order of the catalogue.

    diversity: as of `diversified`, among the best `pool_of(k)`.
    """
    values = found.probabilities * worth.whole  # (items,) float64: prices may be large
    values[asked.seen] = -np.inf
    if len(asked.passing):
        values[asked.passing == 0] = -np.inf
    pool = min(pool_of(k) if diversity else k, len(values))
    good = np.flatnonzero((values >= np.partition(values, -pool)[-pool]) & (values > -np.inf))
    order = np.argsort(-values[good], kind="stable")[:pool]
    items: Places = good[order].astype(np.int32)
    best = values[items]
    if diversity and len(items):
        relevance = (best - best[-1]) / max(float(best[0] - best[-1]), 1e-300)
        relevance = relevance.astype(np.float32)
        items = items[
            diversified(runtime, kernels, items, relevance, min(k, len(items)), diversity)
        ]
    return items


def valued(items: Places, ids: list[str], found: Likely, worth: Worth) -> list[ValuedItem]:
    """Return what is known about the worth of these items. ids: of all items, by position."""
    answer = []
    for item in items.tolist():
        probability = float(found.probabilities[item])
        parts = {
            name: probability * float(values[item])
            for name, values in worth.parts.items()
            if not math.isnan(values[item])
        }
        answer.append(
            ValuedItem(
                ids[item], float(found.scores[item]), probability, sum(parts.values()), parts
            )
        )
    return answer


def _unusable(what: str, fix: str, name: str | None = None) -> ConfigError:
    parameter = "objective" if name is None else f"objective.{name}"
    return ConfigError(what, fix=fix, parameter=parameter)
