"""Report what became of answers, with rates and intervals, in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from distilrec.errors import RequestError
from distilrec.serve.http import Call, Endpoint
from distilrec.serve.outcomes import Outcomes, Provenance
from distilrec.serve.parameters import check_limit, text_of
from distilrec.serve.schemas import Estimate, OutcomeGroup, OutcomesResponse
from distilrec.stores.outcomes import OUTCOME_DAYS

_Z = 1.959964  # the .975 quantile of the normal distribution
_FIELDS = ("day", "endpoint", "placement", "model_version", "rules", "variant", "group", "position")
_BY = "placement,model_version"
_MAX_GROUPS = 10_000
_DAYS = 7
_FIRST = date(1970, 1, 1)


def wilson(successes: float, trials: float) -> Estimate | None:
    """Return a rate with its 95% interval (Wilson 1927, JASA 22: 209-212); None without trials."""
    if trials <= 0:
        return None
    rate, spread = successes / trials, _Z**2 / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return Estimate(rate, max(0.0, centre - half), min(1.0, centre + half))


def mean_of_sums(total: float, squares: float, number: float) -> Estimate | None:
    """Return the mean of a number of values, known by their sum and the sum of their squares, with
    its 95% interval by the central limit theorem; None for less than two.
    """
    if number < 2:
        return None
    mean = total / number
    variance = max(0.0, squares - total * mean) / (number - 1)
    half = _Z * math.sqrt(variance / number)
    return Estimate(mean, mean - half, mean + half)


class OutcomeReport:
    """Answer what became of answers."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes

    async def report(self, call: Call) -> OutcomesResponse:
        """Return the groups that the query string asks for. Raises RequestError for one that is not
        valid, StoreErrors.
        """
        last = _day(call, "to", datetime.now(UTC).date())
        first = _day(call, "from", last - timedelta(days=_DAYS - 1))
        if first > last:
            raise RequestError(
                f"from is {first}, after to, {last}", fix="give a day that is not after `to`"
            )
        check_limit("days", (last - first).days + 1, OUTCOME_DAYS)
        by = _by(text_of(call, "by") or _BY)
        found = await self._outcomes.between((first - _FIRST).days, (last - _FIRST).days)
        groups: dict[tuple[str | int, ...], dict[str, float]] = {}
        for (day, provenance, position), measures in found.items():
            values = _values(day, provenance, position)
            group = groups.setdefault(tuple(values[name] for name in by), {})
            for measure, amount in measures.items():
                group[measure] = group.get(measure, 0.0) + amount
        check_limit("groups", len(groups), _MAX_GROUPS)
        listed = [_group(dict(zip(by, key, strict=True)), groups[key]) for key in sorted(groups)]
        return OutcomesResponse(str(first), str(last), [one for one in listed if one is not None])


def endpoints(report: OutcomeReport) -> list[Endpoint]:
    """Return the endpoint of outcomes."""
    return [
        Endpoint(
            "GET", "/v1/outcomes", "outcomes", "What became of the answers of some days.", "admin",
            None, OutcomesResponse, report.report,
            {
                "from": f"First day of answers in UTC, as YYYY-MM-DD; {_DAYS - 1} days before `to` "
                "where it is left out.",
                "to": "Last day; today where it is left out.",
                "by": f"Groups, separated by commas: {', '.join(_FIELDS)}; {_BY} where it is left "
                "out.",
            },
        ),
    ]  # fmt: skip


def _values(day: int, provenance: Provenance, position: int) -> dict[str, str | int]:
    return {
        "day": str(_FIRST + timedelta(days=day)),
        "endpoint": provenance.endpoint,
        "placement": provenance.placement,
        "model_version": provenance.model_version,
        "rules": provenance.rules,
        "variant": provenance.variant,
        "group": provenance.group,
        "position": position,
    }


def _group(names: dict[str, str | int], sums: Mapping[str, float]) -> OutcomeGroup | None:
    """Return a group; None for a position of which nothing is known."""

    def number(measure: str) -> int:
        return round(sums.get(measure, 0.0))

    items = number("impressions"), number("clicks"), number("conversions")
    of_items = wilson(number("clicked_impressions"), number("impressions"))
    value = sums.get("value", 0.0)
    if "position" in names:
        if not any(items):
            return None
        return OutcomeGroup(*items, value, impression_click_rate=of_items, **names)  # type: ignore[arg-type]
    shown, clicked, converted = number("shown"), number("clicked"), number("converted")
    # A process that was killed has not stored the answers of its last half second.
    answers = max(number("answers"), shown, clicked, converted)
    return OutcomeGroup(
        *items,
        value,
        answers,
        shown,
        clicked,
        converted,
        of_items,
        wilson(clicked, answers),
        wilson(converted, answers),
        mean_of_sums(value, sums.get("squares", 0.0), answers),
        **names,  # type: ignore[arg-type]
    )


def _by(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in _FIELDS:
            raise RequestError(
                f"outcomes cannot be grouped by {name!r}",
                fix=f"give some of {', '.join(_FIELDS)}, separated by commas",
            )
    return names


def _day(call: Call, name: str, default: date) -> date:
    text = text_of(call, name)
    if not text:
        return default
    try:
        if len(text) != len("YYYY-MM-DD"):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise RequestError(
            f"{name} is not a day", fix=f"give for example ?{name}=2026-11-27"
        ) from None
