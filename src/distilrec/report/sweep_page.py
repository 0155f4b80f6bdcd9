"""A sweep as a table, as a section of a configuration file, and as one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from distilrec._version import __version__
from distilrec.files import write_whole
from distilrec.report.page import template
from distilrec.report.plots import Curve, draw_sizes, svg
from distilrec.report.sweep import TEACHER, WITH, WITHOUT, Claim, Point, Sweep
from distilrec.report.sweep_words import choice, headline, sentences
from distilrec.report.units import bytes_in_words, time_in_words

_HEADER = (
    "student with or without distillation",
    "validation NDCG@10 [95%]",
    "test NDCG@10 [95%]",
    "per request",
    "size",
    "parameters",
    "training",
)


def sweep_table(sweep: Sweep) -> list[list[str]]:
    """Return all models as rows of text, the first one being the header."""
    students = sorted(
        sweep.students(), key=lambda point: (-point.share, point.size, point.arm != WITH)
    )
    names = [sweep.teacher, *students]
    shown = [name for name in names[0].slices if sweep.slice_sizes[name]]
    return [[*_HEADER, *shown], *(_cells(sweep, point, shown) for point in names)]


def _cells(sweep: Sweep, point: Point, slices: Sequence[str]) -> list[str]:
    cost = point.cost
    return [
        _name(sweep, point),
        str(point.validation),
        str(point.test),
        "" if cost.latency is None else time_in_words(cost.latency.p50),
        "" if cost.size is None else bytes_in_words(cost.size),
        "" if cost.parameters is None else f"{cost.parameters:,}",
        "" if cost.seconds is None else f"{cost.seconds:.0f} s",
        *(f"{point.slices[name].mean:.4f}" for name in slices),
    ]


def _name(sweep: Sweep, point: Point) -> str:
    if point.arm == TEACHER:
        return TEACHER
    arm = point.arm.removesuffix(" distillation")
    users = "" if point.share == 1 else f", {point.share:.0%} of users"
    return f"{point.size} {sweep.unit} {arm}{users}"


def section(sweep: Sweep) -> str:
    """Return the section of a configuration file for the chosen size."""
    lines = [f"# {choice(sweep)}"]
    if sweep.choice.arm == WITHOUT:
        lines.append("# Without distillation: serve the bundle in bundle-baseline.")
    lines.append("[student]")
    lines += [f"{key} = {json.dumps(value)}" for key, value in sweep.choice.section.items()]
    return "\n".join(lines) + "\n"


def write_sweep_report(sweep: Sweep, path: Path) -> None:
    """Write the page: one file, no external resources."""
    page = template("sweep.html").render(
        sweep=sweep,
        version=__version__,
        headline=headline(sweep),
        sentences=sentences(sweep),
        plots=_plots(sweep),
        figures=sweep_table(sweep),
        claims=_claims(sweep),
        choice=choice(sweep),
        section=section(sweep),
    )
    write_whole(path, page.encode())


def _claims(sweep: Sweep) -> list[tuple[str, str, list[list[str]]]]:
    """Return the title, the anchor and the table of each question."""
    unit = sweep.unit

    def users(claim: Claim) -> str:
        return "" if claim.share == 1 else f", {claim.share:.0%} of users"

    return [
        (title, anchor, [["models", "difference", "95% interval", "p", "shown"], *rows])
        for title, anchor, rows in (
            (
                "With and without distillation",
                "gains",
                [
                    _row(f"{claim.size} {unit}{users(claim)}: {WITH} − without", claim)
                    for claim in sweep.gains
                ],
            ),
            (
                "Smaller with, larger without",
                "replacements",
                [
                    _row(f"{claim.size} {unit} with − {claim.other_size} without", claim)
                    for claim in sweep.replacements
                ],
            ),
            (
                "Beside the teacher",
                "beside-the-teacher",
                [
                    _row(f"{claim.size} {unit} {claim.arm} − teacher", claim)
                    for claim in sweep.to_teacher
                ],
            ),
            (
                "What there is to distil",
                "leads",
                [
                    _row(f"teacher − {claim.other_size} {unit} without", claim)
                    for claim in sweep.leads
                ],
            ),
            (
                "Cold users and rare items",
                "slices",
                [
                    _row(f"{claim.slice}, {claim.size} {unit}: {WITH} − without", claim)
                    for claim in sweep.slice_gains
                ],
            ),
        )
        if rows
    ]


def _row(models: str, claim: Claim) -> list[str]:
    interval = claim.difference.interval
    if claim.margin is not None:
        shown = "as good" if claim.as_good else ""
    else:
        shown = "better" if claim.better else "worse" if claim.worse else ""
    return [
        models,
        f"{interval.mean:+.4f}",
        f"[{interval.low:+.4f}, {interval.high:+.4f}]",
        f"{claim.p_value:.2g}",
        shown,
    ]


def _plots(sweep: Sweep) -> list[tuple[Markup, str]]:
    """Return each plot with what stands below it."""
    plots = []
    level = (TEACHER, sweep.teacher.test)
    curves = [(arm, sweep.curve(arm)) for arm in (WITH, WITHOUT)]
    for cost, caption in (
        ("microseconds per request (p50)", "Quality against time per request"),
        ("bytes of the bundle's model", "Quality against bytes"),
    ):
        drawn = [
            Curve(
                arm,
                [str(point.size) for point in points],
                [_cost(point, cost) for point in points],
                [point.test for point in points],
            )
            for arm, points in curves
        ]
        if all(all(curve.costs) for curve in drawn):
            plot = svg(
                f"Test NDCG@10 against {cost}, {WITH} and without",
                partial(draw_sizes, curves=drawn, cost=cost, level=level),
            )
            plots.append((plot, f"{caption}; at each marker stands the size in {sweep.unit}."))
    if len(sweep.shares()) > 1:
        plots += [_by_share(sweep, size) for size in sweep.sizes()]
    return plots


def _cost(point: Point, cost: str) -> float:
    if cost.startswith("bytes"):
        return float(point.cost.size or 0)
    return point.cost.latency.p50 if point.cost.latency else 0.0


def _by_share(sweep: Sweep, size: int) -> tuple[Markup, str]:
    """Return the quality of one size by the share of the users that it was trained on."""
    curves = []
    for arm in (WITH, WITHOUT):
        points = [
            point
            for share in sweep.shares()
            for point in sweep.curve(arm, share)
            if point.size == size
        ]
        curves.append(
            Curve(
                arm,
                [f"{point.share:.0%}" for point in points],
                [100 * point.share for point in points],
                [point.test for point in points],
            )
        )
    plot = svg(
        f"Test NDCG@10 by the share of the users, {size} {sweep.unit}",
        partial(draw_sizes, curves=curves, cost="percent of the users", level=None),
    )
    return plot, f"{size} {sweep.unit}, trained on a share of the users; the teacher has had all."
