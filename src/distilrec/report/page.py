"""The comparison as a table in the terminal and as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from distilrec._version import __version__
from distilrec.files import write_whole
from distilrec.measure.statistics import Difference
from distilrec.report.comparison import ALONE, STUDENT, TEACHER, Comparison, Row, Trials
from distilrec.report.plots import (
    draw_curves,
    draw_differences,
    draw_slices,
    draw_trade,
    draw_tree,
    svg,
)
from distilrec.report.units import bytes_in_words, time_in_words

_QUALITY = ("model", "NDCG@10 [95%]", "HR@10", "MRR@10", "AUC", "retention", "agreement")
_COST = ("parameters", "size", "training", "per request", "p99")


def table(comparison: Comparison) -> list[list[str]]:
    """Return the comparison as rows of text, the first one being the header."""
    return [
        [*_QUALITY, *_COST],
        *([row.name, *_quality_cells(row), *_cost_cells(row)] for row in comparison.rows),
    ]


def _quality_cells(row: Row) -> list[str]:
    return [
        str(row.quality["ndcg@10"]),
        *(f"{row.quality[name].mean:.4f}" for name in ("hit_rate@10", "mrr@10", "auc")),
        f"{row.retention['ndcg@10']:.0%}" if row.retention else "",
        "" if row.agreement is None else f"{row.agreement:.0%}",
    ]


def _cost_cells(row: Row) -> list[str]:
    return [
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.size is None else bytes_in_words(row.size),
        "" if row.training_seconds is None else f"{row.training_seconds:.0f} s",
        "" if row.latency is None else time_in_words(row.latency.p50),
        "" if row.latency is None else time_in_words(row.latency.p99),
    ]


def verdict(comparison: Comparison) -> list[str]:
    """Return what the comparison says, in sentences. Never more than the intervals allow."""
    names = {row.name for row in comparison.rows}
    lines = []
    if comparison.privacy is not None:
        lines.append(
            f"The student's weights are differentially private ({comparison.privacy}), learned "
            "without the teacher's "
            "labels; the student without distillation is the same without privacy."
        )
    elif comparison.headroom is not None:
        lines += comparison.headroom.lines()
    for difference in comparison.differences:
        if difference.metric == "ndcg@10" and difference.a == STUDENT:
            lines.append(_sentence(difference, comparison))
    if ALONE in names and comparison.trials is not None and comparison.privacy is None:
        lines.append(_tuning(comparison.trials))
    if comparison.privacy is None and {STUDENT, ALONE} <= comparison.validation.keys():
        lines.append(_to_serve(comparison.validation))
    if {TEACHER, STUDENT} <= names:
        teacher, student = comparison.row(TEACHER), comparison.row(STUDENT)
        lines.append(
            f"The student keeps {student.retention['ndcg@10']:.0%} of the teacher's NDCG@10."
        )
        if teacher.latency and student.latency:
            lines.append(
                f"One request takes {time_in_words(student.latency.p50)} instead of "
                f"{time_in_words(teacher.latency.p50)}: "
                f"{teacher.latency.p50 / student.latency.p50:,.0f} times less."
            )
        if teacher.size and student.size:
            lines.append(
                "The model has "
                f"{bytes_in_words(student.size)} instead of {bytes_in_words(teacher.size)}."
            )
    return lines


def _to_serve(validation: Mapping[str, float]) -> str:
    """Return which of the two students should answer: the better one on the validation part, since
    a choice by the test part would take the worth from its figures.
    """
    with_labels, alone = validation[STUDENT], validation[ALONE]
    if with_labels >= alone:
        return (
            f"Serve the student (`bundle`): on validation, its NDCG@10 is {with_labels:.4f}, "
            f"{alone:.4f} without distillation."
        )
    return (
        f"Serve the {ALONE} (`bundle-baseline`): on validation, its NDCG@10 is {alone:.4f}, "
        f"{with_labels:.4f} with distillation."
    )


def headline(comparison: Comparison) -> str:
    """Return the verdict in one sentence: what was lost against the teacher, and what distillation
    brought.
    """
    retained = {
        -1: "The student is below its teacher",
        0: "No loss against the teacher could be shown",
        1: "The student is above its teacher",
        None: "There is no teacher to compare with",
    }[_side(_against(comparison, TEACHER))]
    gained = {
        -1: "distillation made it worse",
        0: "no gain from distillation could be shown",
        1: "distillation made it better",
        None: "what distillation brought was not measured",
    }[_side(_against(comparison, ALONE))]
    return f"{retained}; {gained}."


def _against(comparison: Comparison, other: str) -> Difference | None:
    """Return the student's NDCG@10 minus that of another model."""
    wanted = (STUDENT, other, "ndcg@10")
    return next(
        (
            difference
            for difference in comparison.differences
            if (difference.a, difference.b, difference.metric) == wanted
        ),
        None,
    )


def _side(difference: Difference | None) -> int | None:
    """Whether the first model is above (1) or below (-1) the second, as far as the
    interval says.
    """
    if difference is None:
        return None
    interval = difference.interval
    return (1 if interval.mean > 0 else -1) if interval.excludes_zero else 0


class Figure(NamedTuple):
    """A number that is shown large, and what it is."""

    value: str
    meaning: str


def figures(comparison: Comparison) -> list[Figure]:
    """Return the few numbers that a decision needs."""
    names = {row.name for row in comparison.rows}
    numbers = []
    if {TEACHER, STUDENT} <= names:
        teacher, student = comparison.row(TEACHER), comparison.row(STUDENT)
        numbers.append(
            Figure(f"{student.retention['ndcg@10']:.0%}", "of the teacher's NDCG@10 is kept")
        )
        if teacher.latency and student.latency:
            times = teacher.latency.p50 / student.latency.p50
            numbers.append(
                Figure(
                    f"{times:,.0f}\N{MULTIPLICATION SIGN}",
                    "faster than the teacher, for one request",
                )
            )
        if teacher.size and student.size:
            times = teacher.size / student.size
            numbers.append(
                Figure(f"{times:,.1f}\N{MULTIPLICATION SIGN}", "smaller than the teacher")
            )
    if brought := _against(comparison, ALONE):
        low, high = brought.interval.low, brought.interval.high
        meaning = f"NDCG@10 by distillation, 95% interval [{low:+.4f}, {high:+.4f}]"
        numbers.append(Figure(f"{brought.interval.mean:+.4f}", meaning))
    return numbers


def _tuning(trials: Trials) -> str:
    """Return how hard both students were tuned."""
    if trials.alone and trials.alone == trials.student:
        return (
            "Both students were tuned on validation with the same budget: "
            f"{trials.student} trials each."
        )
    if trials.alone:
        return (
            f"Both students were tuned on validation: the distilled one in {trials.student} "
            f"trials, the one without distillation in {trials.alone}."
        )
    if trials.student:
        return (
            f"The student was tuned on validation in {trials.student} trials, the one without "
            "distillation was not: the difference between them favours distillation."
        )
    return (
        "Neither student was tuned; one without distillation may reach more than it does here "
        "(`distilrec tune`)."
    )


def _sentence(difference: Difference, comparison: Comparison) -> str:
    interval = difference.interval
    judgement = {-1: "worse than", 0: "not distinguishable from", 1: "better than"}[
        _side(difference) or 0
    ]
    opponent = f"the {difference.b}"
    if difference.b == ALONE:
        sizes = {comparison.row(name).parameters for name in (STUDENT, ALONE)}
        opponent = f"the {'same ' if len(sizes) == 1 else ''}{ALONE}"
    return (
        f"The student is {judgement} {opponent}: {interval.mean:+.4f} NDCG@10, 95% interval "
        f"[{interval.low:+.4f}, {interval.high:+.4f}], p = {difference.p_value:.3g}."
    )


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the HTML report: one file, no external resources."""
    rows = comparison.rows
    page = template("report.html").render(
        comparison=comparison,
        version=__version__,
        headline=headline(comparison),
        figures=figures(comparison),
        verdict=verdict(comparison),
        quality=[_QUALITY, *([row.name, *_quality_cells(row)] for row in rows)],
        cost=[
            ("model", *_COST),
            *([row.name, *cells] for row in rows if any(cells := _cost_cells(row))),
        ],
        quality_names=list(rows[0].quality),
        list_names=list(dict.fromkeys(name for row in rows for name in row.lists)),
        slice_names=[name for name, size in comparison.slice_sizes.items() if size],
        plots=_plots(comparison),
        tree=svg("The tree", partial(draw_tree, tree=comparison.tree), (14, 6))
        if comparison.tree
        else "",
    )
    write_whole(path, page.encode())


def template(name: str) -> Template:
    """Return a page of this folder to be filled in."""
    environment = Environment(
        loader=PackageLoader("distilrec", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _plots(comparison: Comparison) -> list[tuple[Markup, str]]:
    """Return each plot with what stands below it; those without anything to show are left out."""
    rows, plots = comparison.rows, []
    if differences := [
        difference for difference in comparison.differences if difference.metric == "ndcg@10"
    ]:
        plot = svg(
            "Differences of NDCG@10 with 95% intervals",
            partial(draw_differences, differences=differences),
        )
        plots.append(
            (plot, "What the differences are worth: an interval across the line means not shown.")
        )
    if timed := [row for row in rows if row.latency]:
        plot = svg("NDCG@10 against time per request", partial(draw_trade, rows=timed))
        plots.append((plot, "Quality against time per request."))
    if curves := [row for row in rows if row.curve]:
        plot = svg("Validation NDCG@10 by epoch", partial(draw_curves, rows=curves))
        plots.append((plot, "Learning curves; the marker is the epoch that was kept."))
    plot = svg(
        "Held-out items found in the first 10, by popularity", partial(draw_slices, rows=rows)
    )
    plots.append(
        (plot, "Head, middle and tail items had a third of the training interactions each.")
    )
    return plots
