"""How often an experiment without a difference is called different, and how soon a real one is.

    python bench/ab.py [--repetitions 200] [--only NAME ...]

Users come to a service, each with a click rate of their own (a beta distribution with the given
mean; two answers to the same user correlate with .05) and a number of answers from a log-normal
distribution, 5 in the mean unless the row says otherwise. Users and their groups are assigned by
chance. After every thousand answers the arms are compared, and the experiment ends at the first
difference, as somebody does who watches it. Users either come at any time ("the same users"), or
each arrives once and comes again within a tenth of the time ("new users"). Beside the confidence
sequence over groups of users stand two wrong ways: the same with every answer as an observation,
and the usual test of two rates at 1.96 standard errors. Prints tables and one JSON line, and writes
both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilrec.confidence import Arm, compare_arms

RESULTS = Path(__file__).parent / "results"
GROUPS, LOOK_EVERY, CORRELATION = 64, 1_000, 0.05
Totals = NDArray[np.float64]


class Cell(NamedTuple):
    """One experiment that is repeated. base: mean click rate of the control; lift: relative;
    per_user: mean number of answers of a user.
    """

    base: float
    lift: float
    answers: int
    returning: bool
    share: float = 0.5
    per_user: int = 5

    @property
    def users(self) -> str:
        return "the same users" if self.returning else "new users"


NOTHING = {
    "A/A, 30%": Cell(0.3, 0.0, 100_000, True),
    "A/A, 30%, new users": Cell(0.3, 0.0, 100_000, False),
    "A/A, 3%": Cell(0.03, 0.0, 100_000, True),
    "A/A, 3%, new users": Cell(0.03, 0.0, 100_000, False),
    "A/A, 10%, a share of 10%": Cell(0.1, 0.0, 100_000, True, 0.1),
    "A/A, 10%, 50 answers of a user": Cell(0.1, 0.0, 100_000, True, per_user=50),
    "A/A, 10%, a million answers": Cell(0.1, 0.0, 1_000_000, True),
}
LIFTS = {
    "+5% of 30%": Cell(0.3, 0.05, 300_000, True),
    "+5% of 30%, new users": Cell(0.3, 0.05, 300_000, False),
    "+5% of 10%, new users": Cell(0.1, 0.05, 1_000_000, False),
    "+10% of 10%, new users": Cell(0.1, 0.1, 300_000, False),
}


class Simulated(NamedTuple):
    """What each look sees, (looks, arms, groups)."""

    answers: Totals
    clicks: Totals


def simulated(cell: Cell, rng: np.random.Generator) -> Simulated:
    """Return the counters of one repetition at every look."""
    users = cell.answers // cell.per_user
    weights = rng.lognormal(0, 1, users)
    owners = rng.choice(users, cell.answers, p=weights / weights.sum())
    if cell.returning:
        order = rng.permutation(cell.answers)
    else:  # from an arrival on, within a tenth of the time
        order = np.argsort(rng.random(users)[owners] + 0.1 * rng.random(cell.answers))
    owners = owners[order]
    concentration = 1 / CORRELATION - 1
    rates = rng.beta(cell.base * concentration, (1 - cell.base) * concentration, users)
    arms = rng.random(users) < cell.share
    clicked = rng.random(cell.answers) < np.minimum(rates * (1 + cell.lift * arms), 1)[owners]
    places = (arms * GROUPS + rng.integers(GROUPS, size=users))[owners]
    looks = cell.answers // LOOK_EVERY
    cells = np.arange(cell.answers) // LOOK_EVERY * 2 * GROUPS + places
    return Simulated(
        *(
            np.bincount(cells, counted, looks * 2 * GROUPS)
            .reshape(looks, 2, GROUPS)
            .cumsum(0)
            .astype(float)
            for counted in (None, clicked)
        )
    )


def by_user(answers: Totals, clicks: Totals) -> bool:
    """Whether the confidence sequence over groups of users excludes zero."""
    return compare_arms(Arm(answers[0], clicks[0]), Arm(answers[1], clicks[1])).different


def _standard_error(answers: Totals, clicks: Totals) -> tuple[float, float]:
    """Return the difference of two rates and its standard error, of independent answers."""
    rates = clicks.sum(1) / answers.sum(1)
    return rates[1] - rates[0], math.sqrt((rates * (1 - rates) / answers.sum(1)).sum())


def by_answer(answers: Totals, clicks: Totals) -> bool:
    """Use the same boundary with every answer as an observation."""
    difference, error = _standard_error(answers, clicks)
    ratio = 8.2 * answers.sum() / 100_000
    bound = (1 + 1 / ratio) * (math.log1p(ratio) - 2 * math.log(0.05))
    return abs(difference) > math.sqrt(bound) * error


def usual(answers: Totals, clicks: Totals) -> bool:
    """Test for a difference of two rates, at 1.96 standard errors."""
    difference, error = _standard_error(answers, clicks)
    return abs(difference) > 1.96 * error


METHODS: dict[str, Callable[[Totals, Totals], bool]] = {
    "by user": by_user,
    "by answer": by_answer,
    "usual test": usual,
}


def found_at(cell: Cell, repetitions: int, methods: list[str]) -> dict[str, list[int | None]]:
    """Return after how many answers each repetition is called different, None for never."""
    found: dict[str, list[int | None]] = {name: [] for name in methods}
    for seed in range(repetitions):
        seen = simulated(cell, np.random.default_rng(seed))
        for name in methods:
            looks = (
                number
                for number, counters in enumerate(zip(*seen, strict=True), 1)
                if METHODS[name](*counters)
            )
            first = next(looks, None)
            found[name].append(None if first is None else first * LOOK_EVERY)
    return found


def row_of(name: str, cell: Cell, repetitions: int) -> dict[str, Any]:
    """Return what is measured of a cell."""
    started = time.process_time()
    found = found_at(cell, repetitions, list(METHODS) if not cell.lift else ["by user"])
    late = sorted(cell.answers + 1 if at is None else at for at in found["by user"])
    row = {
        "name": name,
        **cell._asdict(),
        "repetitions": repetitions,
        "different": {
            method: sum(at is not None for at in ats) / repetitions for method, ats in found.items()
        },
        "seconds": round(time.process_time() - started, 1),
    }
    if cell.lift:
        row["answers_until"] = {
            f"{share:.0%}": at
            if (at := late[math.ceil(share * repetitions) - 1]) <= cell.answers
            else None
            for share in (0.5, 0.8, 0.95)
        }
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the tables of a result."""
    lines = [
        f"Share of {rows[0]['repetitions']} repetitions that are called different, looked at every "
        "thousand answers.",
        "",
        "| nothing differs | users | answers | confidence sequence by user | the same by answer | "
        "usual test |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        if not row["lift"]:
            cell = NOTHING[row["name"]]
            shares = " | ".join(f"{row['different'][name]:.1%}" for name in METHODS)
            named = row["name"].replace(", new users", "")
            lines.append(f"| {named} | {cell.users} | {cell.answers:,} | {shares} |")
    lines += [
        "",
        "| a real lift | users | answers | found | answers until 50% | 80% | 95% are found |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row["lift"]:
            cell = LIFTS[row["name"]]
            until = " | ".join(
                "-" if n is None else f"{n:,}" for n in row["answers_until"].values()
            )
            named = row["name"].replace(", new users", "")
            share = f"{row['different']['by user']:.1%}"
            lines.append(f"| {named} | {cell.users} | {cell.answers:,} | {share} | {until} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="only these experiments, by name")
    arguments = parser.parse_args()
    cells = {**NOTHING, **LIFTS}
    names = arguments.only or list(cells)
    rows = [row_of(name, cells[name], arguments.repetitions) for name in names]
    result = {"groups": GROUPS, "correlation": CORRELATION, "rows": rows}
    text = table(rows)
    print(text, json.dumps(result), sep="\n\n")
    if not arguments.only:
        (RESULTS / "ab.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "ab.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
