"""Plots as SVG that take their colours from the page, and so follow its light and dark mode."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Drawn in these colours, which occur nowhere else, and then replaced by the page's variables.
_INK, _MUTED, _GRID = "#010203", "#040506", "#070809"
_COLOURS = ("#0a0b0c", "#0d0e0f", "#101112", "#131415", "#161718", "#191a1b")
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--line",
    **{colour: f"--series-{number}" for number, colour in enumerate(_COLOURS, start=1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "latentseg",  # the same figure is always the same text
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.ymargin": 0.12,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.grid.which": "both",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
    "legend.handlelength": 1.5,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.0,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "text.color": _INK,
}
# Curves are told apart without colour, too.
_STYLES = ("solid", (0, (4, 1.6)), (0, (1.2, 1.4)), "dashdot", (0, (7, 2)), (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Line:
    """A named curve; colours are given in order of the curves of a panel."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: What is shown, with its unit.
        x_label: Below the axis.
        lines: The curves.
        is_log: Whether the vertical axis is logarithmic.
        mark: A place on the horizontal axis to point out, with its name.
    """

    title: str
    x_label: str
    lines: Sequence[Line]
    is_log: bool = False
    mark: tuple[float, str] | None = None


def line_chart(panels: Sequence[Panel]) -> str:
    """One to four panels of curves as an SVG element; four stand two by two."""
    columns = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 2.5 * rows), layout="constrained")
        for axes, panel in zip(np.ravel(figure.subplots(rows, columns)), panels, strict=True):
            _draw(axes, panel)
        return _svg(figure)


def histogram(
    values: Sequence[float],
    *,
    x_label: str,
    title: str,
    n_bins: int = 25,
    mark: tuple[float, str] | None = None,
) -> str:
    """How often values in [0, 1] occur, as an SVG element."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=n_bins, range=(0, 1))
    return bar_chart(edges.tolist(), counts.tolist(), x_label=x_label, title=title, mark=mark)


def bar_chart(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    x_label: str,
    title: str,
    width: float = 10,
    mark: tuple[float, str] | None = None,
) -> str:
    """Counts between edges, as an SVG element; `width` in units of 72 px."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, 2.4), layout="constrained")
        axes = figure.subplots()
        widths = np.diff(edges)
        axes.bar(edges[:-1], counts, width=0.9 * widths, align="edge", color=_COLOURS[0])
        axes.set(title=title, xlabel=x_label, xlim=(edges[0], edges[-1]))
        _mark(axes, mark)
        return _svg(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    for number, line in enumerate(panel.lines):
        few = {"marker": "o", "markersize": 4} if len(line.x) <= 12 else {}
        axes.plot(
            line.x,
            line.y,
            label=line.name,
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_STYLES[number % len(_STYLES)],
            **few,
        )
    axes.set(title=panel.title, xlabel=panel.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.is_log:
        axes.set_yscale("log", subs=[2, 5])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if 1 < len(panel.lines) <= 3:  # few fit beside the title, where no curve is
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.3)
    elif panel.lines[1:]:
        axes.legend()
    _mark(axes, panel.mark)


def _mark(axes: Axes, mark: tuple[float, str] | None) -> None:
    if mark is not None:
        place, name = mark
        axes.axvline(place, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            name,
            (place, 1),
            xytext=(5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=9.5,
        )


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="\w+_\d+">', "<g>", svg)  # the same names in every figure of the page
    # The page's own typeface instead of matplotlib's, at the same size.
    svg = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
