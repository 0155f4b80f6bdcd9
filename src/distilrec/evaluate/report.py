"""The comparison as a table in the terminal and as one self-contained HTML file."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distilrec._version import __version__
from distilrec.evaluate.comparison import ALONE, STUDENT, TEACHER, Comparison, Row
from distilrec.evaluate.statistics import Difference
from distilrec.students.soft_tree import TreeNode

_TABLE = ("ndcg@10", "hit_rate@10", "mrr@10", "auc")
_COLOURS = ("#1f5fa8", "#c8553d", "#6b8f3c", "#8a6bb1", "#c28f2c", "#5f6b76")


def table(comparison: Comparison) -> list[list[str]]:
    """The comparison as rows of text, the first one being the header."""
    header = [
        "model",
        "NDCG@10 [95%]",
        "HR@10",
        "MRR@10",
        "AUC",
        "retention",
        "agreement",
        "parameters",
        "size",
        "training",
        "per request",
    ]
    return [header, *(_cells(row) for row in comparison.rows)]


def _cells(row: Row) -> list[str]:
    ndcg = row.quality["ndcg@10"]
    return [
        row.name,
        str(ndcg),
        *(f"{row.quality[name].mean:.4f}" for name in _TABLE[1:]),
        f"{row.retention['ndcg@10']:.0%}" if row.retention else "",
        "" if row.agreement is None else f"{row.agreement:.0%}",
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.size is None else _bytes(row.size),
        "" if row.training_seconds is None else f"{row.training_seconds:.0f} s",
        "" if row.latency is None else _microseconds(row.latency.p50),
    ]


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _microseconds(value: float) -> str:
    return f"{value / 1e3:.2f} ms" if value >= 1e3 else f"{value:.1f} us"


def verdict(comparison: Comparison) -> list[str]:
    """What the comparison says, in sentences. Never more than the intervals allow."""
    names = {row.name for row in comparison.rows}
    lines = []
    if comparison.privacy is not None:
        lines.append(
            f"The student's weights are differentially private ({comparison.privacy}), learned without the teacher's "
            "labels; the student without distillation is the same without privacy."
        )
    for difference in comparison.differences:
        if difference.metric == "ndcg@10" and difference.a == STUDENT:
            lines.append(_sentence(difference))
    if {TEACHER, STUDENT} <= names:
        teacher, student = comparison.row(TEACHER), comparison.row(STUDENT)
        lines.append(f"The student keeps {student.retention['ndcg@10']:.0%} of the teacher's NDCG@10.")
        if teacher.latency and student.latency:
            lines.append(
                f"One request takes {_microseconds(student.latency.p50)} instead of {_microseconds(teacher.latency.p50)}: "
                f"{teacher.latency.p50 / student.latency.p50:,.0f} times less."
            )
        if teacher.size and student.size:
            lines.append(f"The model has {_bytes(student.size)} instead of {_bytes(teacher.size)}.")
    return lines


def _sentence(difference: Difference) -> str:
    interval = difference.interval
    if not interval.excludes_zero:
        judgement = "not distinguishable from"
    else:
        judgement = "better than" if interval.mean > 0 else "worse than"
    other = "the same student without distillation" if difference.b == ALONE else f"the {difference.b}"
    return (
        f"The student is {judgement} {other}: {interval.mean:+.4f} NDCG@10, 95% interval "
        f"[{interval.low:+.4f}, {interval.high:+.4f}], p = {difference.p_value:.3g}."
    )


def write_report(comparison: Comparison, path: Path) -> None:
    """Writes the HTML report: one file, no external resources."""
    environment = Environment(
        loader=PackageLoader("distilrec", "evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = [row for row in comparison.rows if row.curve]
    timed = [row for row in comparison.rows if row.latency]
    page = environment.get_template("report.html").render(
        comparison=comparison,
        version=__version__,
        verdict=verdict(comparison),
        table=table(comparison),
        quality_names=list(comparison.rows[0].quality),
        list_names=list(dict.fromkeys(name for row in comparison.rows for name in row.lists)),
        slice_names=[name for name, size in comparison.slice_sizes.items() if size],
        tree=_svg("The tree", partial(_draw_tree, tree=comparison.tree), (14, 6)) if comparison.tree else "",
        learning=_svg("Validation NDCG@10 by epoch", lambda axes: _draw_curves(axes, curves)) if curves else "",
        trade=_svg("NDCG@10 against time per request", lambda axes: _draw_trade(axes, timed)) if timed else "",
        slices=_svg(
            "Held-out items found in the first 10, by popularity", lambda axes: _draw_slices(axes, comparison.rows)
        ),
    )
    path.write_text(page, encoding="utf-8")


def _svg(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (7, 3.6)) -> Markup:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25)
    draw(axes)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=False, metadata={"Date": None, "Title": title})
    text = out.getvalue()
    label = Markup('<svg role="img" aria-label="{}" ').format(title)
    return Markup(text[text.index("<svg") :]).replace(Markup("<svg "), label, 1)


def _draw_curves(axes: Axes, rows: Iterable[Row]) -> None:
    for row, colour in zip(rows, _COLOURS, strict=False):
        epochs = [point.epoch for point in row.curve]
        values = [point.validation_ndcg for point in row.curve]
        axes.plot(epochs, values, label=row.name, color=colour)
        best = max(range(len(values)), key=values.__getitem__)
        axes.plot(epochs[best], values[best], "o", color=colour)
    axes.set(xlabel="epoch", ylabel="validation NDCG@10")
    axes.legend(frameon=False)


def _draw_trade(axes: Axes, rows: Iterable[Row]) -> None:
    for row, colour in zip(rows, _COLOURS, strict=False):
        assert row.latency is not None
        ndcg = row.quality["ndcg@10"]
        axes.errorbar(
            row.latency.p50,
            ndcg.mean,
            [[ndcg.mean - ndcg.low], [ndcg.high - ndcg.mean]],
            fmt="o",
            color=colour,
            capsize=4,
            label=row.name,
        )
    axes.set_xscale("log")
    axes.set(xlabel="microseconds per request (p50, logarithmic)", ylabel="test NDCG@10 with 95% interval")
    axes.legend(frameon=False)


def _draw_slices(axes: Axes, rows: tuple[Row, ...]) -> None:
    names = ("head items", "middle items", "tail items")
    width = 0.8 / len(rows)
    for place, (row, colour) in enumerate(zip(rows, _COLOURS, strict=False)):
        positions = [n + place * width for n in range(len(names))]
        axes.bar(positions, [row.slices.get(name, 0.0) for name in names], width, label=row.name, color=colour)
    axes.set_xticks([n + 0.4 - width / 2 for n in range(len(names))], names)
    axes.set(ylabel="share found")
    axes.legend(frameon=False, fontsize="small")


_DRAWN_LEVELS = 3


def _draw_tree(axes: Axes, tree: TreeNode) -> None:
    """Gates with what pulls to either side; below the last level drawn, what is typical there. Left is -, right is +."""
    axes.axis("off")

    def node(one: TreeNode, level: int, left: float, right: float) -> tuple[float, float]:
        x, y = (left + right) / 2, -float(level)
        last = level == _DRAWN_LEVELS or not one.children
        lines = one.items[:3] if last else one.questions[:3]
        text = "\n".join(line for each in lines for line in textwrap.wrap(each, 20 if last else 32)[:2])
        if not last:
            middle = (left + right) / 2
            for child, bounds, sign in zip(one.children, ((left, middle), (middle, right)), "-+", strict=True):
                cx, cy = node(child, level + 1, *bounds)
                axes.plot([x, cx], [y, cy], color="#8a97a3", linewidth=0.5 + 6 * child.share, zorder=0)
                axes.text(
                    (x + cx) / 2,
                    (y + cy) / 2,
                    f"{sign} {child.share:.0%}",
                    fontsize=8,
                    color="#445",
                    ha="right" if sign == "-" else "left",
                )
        colour = "#eef4e6" if last else "#e6eef7"
        box = {"boxstyle": "round", "facecolor": colour, "edgecolor": "#8a97a3"}
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)
        return x, y

    node(tree, 0, 0.0, 1.0)
    axes.set(xlim=(0, 1), ylim=(-_DRAWN_LEVELS - 0.5, 0.4))
