"""The figures of a report, drawn by matplotlib as SVG that takes its colours from the page.

Colours are placeholders that are replaced by variables of the page's style sheet, so one drawing
serves light and dark. Text stays text. Names of modules come from files: they are never taken for
markup or formulas.
"""

from __future__ import annotations

import math
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy import array, ma

HEAT_CLASSES = 9
# Of the cells of a heat map, the share that the equal steps of colour cover.
_USUAL = 0.95
_HEAT = [f"#0000{number:02x}" for number in range(1, HEAT_CLASSES + 1)]
_INK, _LINE, _OLD, _NEW = "#000100", "#000200", "#000300", "#000400"
_VARIABLES = {
    **{colour: f"var(--heat-{number})" for number, colour in enumerate(_HEAT, start=1)},
    _INK: "var(--muted)",
    _LINE: "var(--line)",
    _OLD: "var(--old)",
    _NEW: "var(--accent)",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_REFERENCES = re.compile(r'(\bid="|url\(#|href="#)')
# What an SVG file needs and a drawing within a page does not.
_SURPLUS = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_POINTS = 72  # in an inch, matplotlib's unit
# Width of a character of a label, in points; and how far a label of 55 degrees reaches down.
_CHARACTER, _SLOPE = 5.6, 0.82


def find_bounds(cells: Iterable[float]) -> list[float]:
    """The largest value of each class of colour: equal steps, and a last one for what stands out.

    >>> find_bounds([0.25] * 30 + [4.0])
    [0.03125, 0.0625, 0.09375, 0.125, 0.15625, 0.1875, 0.21875, 0.25, 4.0]
    """
    values = sorted(cells)
    if not values or not values[-1]:
        return []
    usual = values[max(0, math.ceil(_USUAL * len(values)) - 1)] or values[-1]
    steps = [usual * number / (HEAT_CLASSES - 1) for number in range(1, HEAT_CLASSES)]
    return [*steps, values[-1]] if values[-1] > usual else steps


def classify(value: float | None, bounds: Sequence[float]) -> int | None:
    """The class of colour of a value, from 1; None where there is none.

    >>> classify(0.01, [0.005, 0.01, 0.02]), classify(0.0, [0.005]), classify(None, [])
    (2, 1, None)
    """
    if value is None:
        return None
    return min(bisect_left(bounds, value), max(0, len(bounds) - 1)) + 1


def draw_heat_map(
    name: str,
    layers: Sequence[int],
    modules: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    bounds: Sequence[float],
) -> str:
    """Layers from top to bottom, modules from left to right, in the colours of ``bounds``."""
    short = [module.rpartition(".")[2] for module in modules]
    labels = short if len(set(short)) == len(short) else list(modules)
    below = 14 + _CHARACTER * _SLOPE * max(map(len, labels))
    row = min(14.0, 560 / max(1, len(layers)))
    size = (44 + 34 * max(3, len(modules)), 12 + max(60.0, row * len(layers)) + below)
    figure, axes = _start(*size, left=28, bottom=below)
    values = array([[classify(cell, bounds) or 0 for cell in line] for line in cells])
    axes.pcolormesh(
        ma.masked_equal(values, 0),
        cmap=ListedColormap(_HEAT),
        vmin=0.5,
        vmax=HEAT_CLASSES + 0.5,
        edgecolors="none",
        antialiased=False,
    )
    axes.invert_yaxis()
    step = max(1, -(-len(layers) // 16))
    places = range(0, len(layers), step)
    axes.set_yticks([place + 0.5 for place in places], [str(layers[place]) for place in places])
    axes.set_xticks(
        [place + 0.5 for place in range(len(modules))],
        labels,
        rotation=55,
        ha="right",
        rotation_mode="anchor",
        parse_math=False,
    )
    _hide(axes, "top", "right", "left", "bottom")
    axes.tick_params(length=0)
    return _finish(figure, name)


def draw_norms(name: str, norms: Mapping[str, Any]) -> str:
    """Histograms of the norms of old and new rows, each as shares of its own rows."""
    figure, axes = _start(400, 200, left=40)
    for part, colour, alpha in (("old", _OLD, 0.75), ("new", _NEW, 0.8)):
        if (found := norms[part]) is not None:
            shares = [count / max(1, found["rows"]) for count in found["counts"]]
            axes.stairs(shares, norms["edges"], fill=True, color=colour, alpha=alpha)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _draw_frame(axes)
    return _finish(figure, name)


def draw_pace(name: str, times: Sequence[float], rates: Sequence[float]) -> str:
    """Megabytes per second over seconds."""
    figure, axes = _start(400, 180, left=62)
    axes.fill_between(times, rates, step="post", color=_NEW, alpha=0.25, linewidth=0)
    axes.step(times, rates, where="post", color=_NEW, linewidth=1.5)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g} MB/s"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _draw_frame(axes)
    return _finish(figure, name)


def _start(width: float, height: float, left: float, bottom: float = 24.0) -> tuple[Figure, Axes]:
    """An empty drawing, in points; ``left`` and ``bottom`` have room for labels."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width / _POINTS, height / _POINTS))
        FigureCanvasSVG(figure)
        box = (left / width, bottom / height, 1 - (left + 10) / width, 1 - (bottom + 8) / height)
        axes = figure.add_axes(box)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def _draw_frame(axes: Axes) -> None:
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0)
    axes.tick_params(length=0)
    _hide(axes, "top", "right", "left")


def _hide(axes: Axes, *sides: str) -> None:
    axes.spines[list(sides)].set_visible(False)


def _finish(figure: Figure, name: str) -> str:
    """The drawing as an element of a page; ``name`` keeps its ids apart from other drawings'."""
    stream = StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that matplotlib's own font lacks
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    text = _SURPLUS.sub("", text[text.index("<svg") :])
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = _REFERENCES.sub(rf"\g<1>{name}-", text)
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def compute_rates(
    progress: Iterable[Sequence[float]], most: int = 60
) -> tuple[list[float], list[float]]:
    """Times, in seconds, and the megabytes per second from each to the next.

    >>> compute_rates([(0.0, 0), (1.0, 2_000_000), (2.0, 2_000_000)])
    ([0.0, 1.0, 2.0], [2.0, 0.0, 0.0])
    """
    points = list(progress)
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return [], []
    length = (points[-1][0] - points[0][0]) / most
    kept = [points[0]]
    for point in points[1:]:
        if point[0] - kept[-1][0] >= length:
            kept.append(point)
    if len(kept) < 2:
        return [], []
    rates = [(then[1] - now[1]) / (then[0] - now[0]) / 1e6 for now, then in pairwise(kept)]
    return [when for when, _ in kept], [*rates, rates[-1]]
