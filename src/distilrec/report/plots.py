"""The plots of the report: SVG with real text, in the colours of the page around it, be it light or
dark.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from distilrec.measure.statistics import Difference, Interval
from distilrec.networks.student import TreeNode
from distilrec.report.comparison import Row

if TYPE_CHECKING:  # loaded for the first plot: what else a run does should not wait for it
    from matplotlib.axes import Axes

# What matplotlib draws with, and the variable of the page's style sheet that takes its place. Lines
# and markers differ too: the colours need not be told apart.
_SERIES = ("#010203", "#010204", "#010205", "#010206", "#010207", "#010208", "#010209")
_INK, _BOX, _LEAF = "#000000", "#01020a", "#01020b"
_VARIABLES = {colour: f"var(--series-{n})" for n, colour in enumerate(_SERIES, start=1)} | {
    _INK: "currentColor",
    _BOX: "var(--soft)",
    _LEAF: "var(--leaf)",
}
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_MARKERS = "osD^vPX"
_HATCHES = ("", "//", "\\\\", "xx", "++", "--", "||")


def svg(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (5, 3.2)) -> Markup:
    """Return a plot as SVG; title: what a screen reader says."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.fonttype": "none", "font.family": "sans-serif", "hatch.linewidth": 0.5}
    ):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25, color=_INK)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    label = Markup('<svg role="img" aria-label="{}" ').format(title)
    return Markup(text).replace(Markup("<svg "), label, 1)


def _series(rows: Sequence[Row]) -> Iterable[tuple[int, Row]]:
    """Yield each model with the index of its colour, line and marker; they repeat after seven."""
    return ((n % len(_SERIES), row) for n, row in enumerate(rows))


def draw_differences(axes: Axes, differences: Sequence[Difference]) -> None:
    """Draw the student minus others with intervals; an interval across the line proves nothing."""
    for row, difference in enumerate(reversed(differences)):
        interval = difference.interval
        reach = [[interval.mean - interval.low], [interval.high - interval.mean]]
        axes.errorbar(interval.mean, row, xerr=reach, fmt="o", color=_SERIES[0], capsize=4)
    axes.axvline(0, color=_INK, linewidth=1)
    axes.set_yticks(
        range(len(differences)),
        [textwrap.fill(f"{d.a} \N{MINUS SIGN} {d.b}", 24) for d in reversed(differences)],
    )
    axes.set(xlabel="difference of NDCG@10, 95% interval", ylim=(-0.5, len(differences) - 0.5))


def draw_curves(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the validation NDCG@10 by epoch; a marker where the weights were kept."""
    for n, row in _series(rows):
        epochs = [point.epoch for point in row.curve]
        values = [point.validation_ndcg for point in row.curve]
        best = max(range(len(values)), key=values.__getitem__)
        axes.plot(
            epochs,
            values,
            label=row.name,
            color=_SERIES[n],
            linestyle=_LINES[n],
            marker=_MARKERS[n],
            markevery=[best],
        )
    axes.set(xlabel="epoch", ylabel="validation NDCG@10")
    axes.legend(frameon=False, fontsize="small")


def draw_trade(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw quality against time per request."""
    for n, row in _series(rows):
        assert row.latency is not None
        ndcg = row.quality["ndcg@10"]
        reach = [[ndcg.mean - ndcg.low], [ndcg.high - ndcg.mean]]
        axes.errorbar(
            row.latency.p50,
            ndcg.mean,
            reach,
            fmt=_MARKERS[n],
            color=_SERIES[n],
            capsize=4,
            label=row.name,
        )
    axes.set_xscale("log")
    axes.set(
        xlabel="microseconds per request (p50, logarithmic)", ylabel="test NDCG@10, 95% interval"
    )
    axes.margins(0.2)
    axes.legend(frameon=False, fontsize="small")


class Curve(NamedTuple):
    """Models of several sizes: their names, and the quality of each against what it costs."""

    name: str
    labels: Sequence[str]
    costs: Sequence[float]
    quality: Sequence[Interval]


def draw_sizes(
    axes: Axes, curves: Sequence[Curve], cost: str, level: tuple[str, Interval] | None = None
) -> None:
    """Draw quality against a cost, a line for each curve. level: a model that they are compared
    with, by its name.
    """
    from matplotlib.ticker import ScalarFormatter

    for n, curve in enumerate(curves):
        means = [interval.mean for interval in curve.quality]
        reach = [
            [interval.mean - interval.low for interval in curve.quality],
            [interval.high - interval.mean for interval in curve.quality],
        ]
        axes.errorbar(
            curve.costs,
            means,
            reach,
            color=_SERIES[n],
            linestyle=_LINES[n],
            marker=_MARKERS[n],
            capsize=3,
            label=curve.name,
        )
        for label, x, y in zip(curve.labels, curve.costs, means, strict=True):
            above = (0, 6) if n == 0 else (0, -12)
            axes.annotate(
                label, (x, y), above, textcoords="offset points", fontsize=8, color=_INK, ha="left"
            )
    if level is not None:
        name, interval = level
        n = len(curves)
        axes.axhline(interval.mean, color=_SERIES[n], linestyle=_LINES[n], label=name)
        axes.axhspan(interval.low, interval.high, color=_SERIES[n], alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="x", which="both", labelsize="small")
    axes.set(xlabel=f"{cost}, logarithmic", ylabel="test NDCG@10, 95% interval")
    axes.margins(0.1)
    axes.legend(frameon=False, fontsize="small")


def draw_slices(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw what is found of popular and of rare items."""
    names = ("head items", "middle items", "tail items")
    width = 0.8 / len(rows)
    for index, (n, row) in enumerate(_series(rows)):
        positions = [group + index * width for group in range(len(names))]
        values = [row.slices.get(name, 0.0) for name in names]
        axes.bar(
            positions,
            values,
            width,
            label=row.name,
            color=_SERIES[n],
            hatch=_HATCHES[n],
            edgecolor=_INK,
            linewidth=0.3,
        )
    axes.set_xticks([group + 0.4 - width / 2 for group in range(len(names))], names)
    axes.set(ylabel="share found")
    axes.legend(frameon=False, fontsize="small")


_DRAWN_LEVELS = 3


def draw_tree(axes: Axes, tree: TreeNode) -> None:
    """Draw gates with what pulls to either side; below the last level drawn, what is typical there.
    Left is -, right is +.
    """
    axes.axis("off")

    def node(branch: TreeNode, level: int, left: float, right: float) -> tuple[float, float]:
        x, y = (left + right) / 2, -float(level)
        last = level == _DRAWN_LEVELS or not branch.children
        lines = branch.items[:3] if last else branch.questions[:3]
        text = "\n".join(
            piece for line in lines for piece in textwrap.wrap(line, 20 if last else 32)[:2]
        )
        if not last:
            middle = (left + right) / 2
            for child, bounds, sign in zip(
                branch.children, ((left, middle), (middle, right)), "-+", strict=True
            ):
                cx, cy = node(child, level + 1, *bounds)
                axes.plot(
                    [x, cx],
                    [y, cy],
                    color=_INK,
                    alpha=0.5,
                    linewidth=0.5 + 6 * child.share,
                    zorder=0,
                )
                axes.text(
                    (x + cx) / 2,
                    (y + cy) / 2,
                    f"{sign} {child.share:.0%}",
                    fontsize=8,
                    color=_INK,
                    ha="right" if sign == "-" else "left",
                )
        colour = _LEAF if last else _BOX
        box = {"boxstyle": "round", "facecolor": colour, "edgecolor": _INK, "linewidth": 0.5}
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)
        return x, y

    node(tree, 0, 0.0, 1.0)
    axes.set(xlim=(0, 1), ylim=(-_DRAWN_LEVELS - 0.5, 0.4))
