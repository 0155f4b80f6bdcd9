"""One table of all data sets that `bench/quality.py` has measured, one of those that
`bench/global_time.py` has, and the tables of some of them.

    python bench/summary.py [--write]

Reads `bench/results/quality-NAME.json`; data sets without such a file are left out. The best member
of an ensemble and the best baseline are the best *on the test part*, the hardest to beat. The share
of the gap is (student - alone) / (teacher - alone) on test NDCG@10, where "alone" is the student
without distillation; there is no gap where the 95% interval of alone - teacher reaches 0. The
table in time reads `bench/results/global-time-NAME.json`: where only the student without
distillation was trained, the last two columns are about it. With --write the tables take the place
of those in `docs/quality.md`, and so do the results that are named there between marks; without it,
the tables are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "quality.md"
_BETWEEN = re.compile(
    r"(<!-- summary: bench/summary.py -->\n).*?(?=<!-- end of summary -->)", re.DOTALL
)
_IN_TIME = re.compile(
    r"(<!-- in time: bench/summary.py -->\n).*?(?=<!-- end of in time -->)", re.DOTALL
)
_RESULTS = re.compile(r"(<!-- results: (\S+) -->\n).*?(?=<!-- end of results -->)", re.DOTALL)
TEACHER, STUDENT, ALONE, MEMBER = "teacher", "student", "student without distillation", "member"
# Version 0.1.0, against a student without distillation that was not tuned
RELEASED = {
    "ml-1m": 0.64,
    "ml-100k": 0.58,
    "ta-feng": 0.57,
    "online-retail": 0.36,
    "complete-journey": 0.07,
}
RECENT = "popularity, last"
IN_TIME = (
    "data set",
    "asked",
    "events",
    "seeds",
    "teacher",
    "student",
    "alone",
    "recent popularity",
    "EASE",
    "ItemKNN",
    "student - best baseline [95%]",
    "student by fifths",
)
HEADER = (
    "data set",
    "context",
    "seeds",
    "teacher",
    "best member",
    "best baseline",
    "student",
    "alone",
    "student - alone [95%]",
    "p",
    "gap closed",
    "in 0.1.0",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), results(RESULTS)), encoding="utf-8")
    else:
        print("\n".join([*table(results(RESULTS)), "", *table_in_time(RESULTS)]))


def results(folder: Path) -> list[dict[str, Any]]:
    """Return what `bench/quality.py` wrote, the data sets of the release first."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("quality-*.json"))]
    order = list(RELEASED)
    return sorted(
        found,
        key=lambda one: order.index(one["dataset"]) if one["dataset"] in order else len(order),
    )


def page(text: str, found: list[dict[str, Any]]) -> str:
    """Return a document with the table, and the results that it names, between their marks."""
    lines = "\n".join(table(found))
    text = _BETWEEN.sub(lambda place: f"{place[1]}\n{lines}\n\n", text)
    lines = "\n".join(table_in_time(RESULTS))
    text = _IN_TIME.sub(lambda place: f"{place[1]}\n{lines}\n\n", text)
    return _RESULTS.sub(
        lambda place: f"{place[1]}\n{(RESULTS / place[2]).read_text(encoding='utf-8')}\n", text
    )


def table(found: list[dict[str, Any]]) -> list[str]:
    """Return the summary as lines of Markdown."""
    rows = ["| " + " | ".join(row) + " |" for row in (HEADER, *map(_cells, found))]
    return [rows[0], "|" + "---|" * len(HEADER), *rows[1:], "", *_together(found)]


def _together(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what the differences of all data sets say together: the mean relative gain, and how
    often it would be as far from 0 if the sign of each difference were drawn (Fisher 1935, sect.
    21: all 2^n signs).
    """
    intervals = [_difference(one, STUDENT, ALONE)["interval"] for one in found]
    alone = [statistics.mean(one["test_ndcg_by_seed"][ALONE]) for one in found]
    gains = [one["mean"] / base for one, base in zip(intervals, alone, strict=True)]
    mean = statistics.mean(gains)
    drawn = [
        statistics.mean(sign * gain for sign, gain in zip(signs, gains, strict=True))
        for signs in product((1, -1), repeat=len(gains))
    ]
    p = sum(abs(value) >= abs(mean) - 1e-12 for value in drawn) / len(drawn)
    yield (
        f"The student is above the one without distillation on {sum(gain > 0 for gain in gains)} "
        f"of {len(found)} data sets, on {sum(one['low'] > 0 for one in intervals)} with an "
        f"interval above 0, on {sum(one['high'] < 0 for one in intervals)} with one below. The "
        f"relative gain is {statistics.median(gains):+.1%} in the median and {mean:+.1%} in the "
        f"mean, from {min(gains):+.1%} to {max(gains):+.1%}; p = {p:.2g} if each data set could "
        "as well have had the other sign."
    )


def table_in_time(folder: Path) -> list[str]:
    """Return the summary of what `bench/global_time.py` wrote as lines of Markdown."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("global-time-*.json"))]
    if not found:
        return ["No data set has been measured yet."]
    cells = [_cells_in_time(one, of) for one in found for of in one["compared"].values()]
    rows = ["| " + " | ".join(row) + " |" for row in (IN_TIME, *cells)]
    return [rows[0], "|" + "---|" * len(IN_TIME), *rows[1:]]


def _cells_in_time(one: dict[str, Any], of: dict[str, Any]) -> Iterator[str]:
    """Yield the cells of one data set and one kind of targets."""
    models = {model["name"]: model for model in of["models"]}
    means = {name: model["quality"]["mean"] for name, model in models.items()}
    student = STUDENT if STUDENT in means else ALONE
    baselines = [name for name in means if name not in {TEACHER, STUDENT, ALONE}]
    best = max(baselines, key=means.__getitem__)
    difference = next(d for d in of["differences"] if (d["a"], d["b"]) == (student, best))
    interval = difference["interval"]
    yield one["name"]
    yield "each event" if of["targets"] == "successive" else "last of each user"
    yield f"{of['events']:,}"
    yield str(len(one["seeds"]))
    for name in (TEACHER, STUDENT, ALONE):
        yield f"{means[name]:.4f}" if name in means else ""
    yield _best(means, lambda name: name.startswith(RECENT))
    for name in ("EASE", "ItemKNN"):
        yield f"{means[name]:.4f}" if name in means else ""
    yield (f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}] ({best})")
    yield ", ".join(
        "-" if math.isnan(value) else f"{value:.4f}" for value in models[student]["periods"]
    )


def _cells(one: dict[str, Any]) -> Iterator[str]:
    means = {name: sum(by) / len(by) for name, by in one["test_ndcg_by_seed"].items()}
    teacher, student, alone = (means[name] for name in (TEACHER, STUDENT, ALONE))
    difference = _difference(one, STUDENT, ALONE)
    interval, lead = difference["interval"], _difference(one, ALONE, TEACHER)["interval"]
    closed = (student - alone) / (teacher - alone) if lead["high"] < 0 else None
    released = RELEASED.get(one["dataset"])
    yield one["dataset"]
    yield f"{one['context']:.0%}" if one.get("context") else "none"
    yield str(len(one["seeds"]))
    yield f"{teacher:.4f}"
    yield _best(means, lambda name: name.startswith(MEMBER))
    yield _best(means, lambda name: name not in {TEACHER, STUDENT, ALONE} and MEMBER not in name)
    yield f"{student:.4f}"
    yield f"{alone:.4f}"
    yield f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"
    yield f"{difference['p_value']:.2g}"
    yield "no gap" if closed is None else f"{closed:.0%}"
    yield "" if released is None else f"{released:.0%}"


def _difference(one: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    wanted = ("ndcg@10", a, b)
    return next(d for d in one["differences"] if (d["metric"], d["a"], d["b"]) == wanted)


def _best(means: dict[str, float], wanted: Any) -> str:
    """Return the best of some models with its kind; nothing where there are none."""
    some = [name for name in means if wanted(name)]
    if not some:
        return ""
    best = max(some, key=means.__getitem__)
    return f"{means[best]:.4f} ({best.rsplit(': ', maxsplit=1)[-1]})"


if __name__ == "__main__":
    main()
