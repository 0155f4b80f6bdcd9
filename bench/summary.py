"""One table of all data sets that `bench/quality.py` has measured, and the tables of some of them.

    python bench/summary.py [--write]

Reads `bench/results/quality-NAME.json`; data sets without such a file are left out. The best member
of an ensemble and the best baseline are the best *on the test part*, the hardest to beat. The share
of the gap is (student - alone) / (teacher - alone) on test NDCG@10, where "alone" is the student
without distillation; there is no gap where the 95% interval of alone - teacher reaches 0. With
--write the table takes the place of the one in `docs/quality.md`, and so do the results that are
named there between marks; without it, the table is printed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "quality.md"
_BETWEEN = re.compile(
    r"(<!-- summary: bench/summary.py -->\n).*?(?=<!-- end of summary -->)", re.DOTALL
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
        print("\n".join(table(results(RESULTS))))


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
    return _RESULTS.sub(
        lambda place: f"{place[1]}\n{(RESULTS / place[2]).read_text(encoding='utf-8')}\n", text
    )


def table(found: list[dict[str, Any]]) -> list[str]:
    """Return the summary as lines of Markdown."""
    rows = ["| " + " | ".join(row) + " |" for row in (HEADER, *map(_cells, found))]
    return [rows[0], "|" + "---|" * len(HEADER), *rows[1:]]


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
