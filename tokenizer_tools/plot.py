"""A comparison of tokenizers as one picture. Needs matplotlib; draws without a screen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.messages import tr

from .compare import ALL, TokenizerComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150


def require_matplotlib() -> None:
    """Raise ``UsageError`` if there is nothing to draw with, before any work is done."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            tr("a plot needs matplotlib, which is not installed"),
            found=str(error),
            remedy=tr("pip install matplotlib, or leave out --plot"),
        ) from None


def draw_png(comparison: TokenizerComparison) -> bytes:
    """Draw tokens per 1000 characters, byte fallback by part, and coverage; return a PNG.

    Labels are ASCII: the fonts that come with matplotlib hold no Chinese.
    """
    from matplotlib.figure import Figure

    labels = _build_labels(comparison)
    n_rows = len(labels) * len(comparison.kinds)
    heights = [0.8 + 0.2 * n_rows] * 2 + [0.8 + 0.3 * len(labels)]
    if not comparison.coverage[0].of:
        heights.pop()
    figure = Figure(figsize=(10, 0.5 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    tokens = [
        [counts[name].tokens_per_1000_characters for name in comparison.kinds]
        for counts in comparison.counts
    ]
    fallback = [
        [100 * counts[name].fallback_or_unknown_share for name in comparison.kinds]
        for counts in comparison.counts
    ]
    parts = [_build_part_label(comparison, name) for name in comparison.kinds]
    top = figure.add_subplot(grid[0])
    _draw_bars(top, parts, tokens, labels, "{:.0f}")
    top.set_title(tr("Tokens per 1000 characters (fewer is shorter)"), loc="left")
    middle = figure.add_subplot(grid[1])
    _draw_bars(middle, parts, fallback, labels, "{:.1f} %")
    middle.set_title(tr("Tokens that are single bytes or unknown, in percent"), loc="left")
    if comparison.coverage[0].of:
        _draw_coverage(figure.add_subplot(grid[2]), comparison, labels)
    handles, names = top.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=min(3, len(names)), frameon=False)
    return _save_png(figure)


def _draw_bars(
    axes: Axes,
    groups: Sequence[str],
    values: Sequence[Sequence[float]],
    labels: Sequence[str],
    form: str,
) -> None:
    """Draw a group of horizontal bars for each of ``groups``, one bar for each of ``labels``."""
    height = 0.8 / len(labels)
    for index, (row, label) in enumerate(zip(values, labels, strict=True)):
        places = [group + (index + 0.5) * height - 0.4 for group in range(len(groups))]
        bars = axes.barh(places, row, height * 0.9, label=label, color=_get_color(index))
        axes.bar_label(bars, [form.format(value) for value in row], padding=3, fontsize=8)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    _format_axes(axes)


def _draw_coverage(axes: Axes, comparison: TokenizerComparison, labels: Sequence[str]) -> None:
    shares = [100 * coverage.share for coverage in comparison.coverage]
    places = range(len(labels))
    bars = axes.barh(places, shares, 0.7, color=[_get_color(index) for index in places])
    texts = [f"{c.share:.1%} ({c.covered:,})" for c in comparison.coverage]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    of = comparison.coverage[0].of
    axes.set_title(
        tr("Of the {of:,} commonest Han characters of the text, own pieces", of=of), loc="left"
    )
    _format_axes(axes)


def _format_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _get_color(index: int) -> str:
    return f"C{index % 10}"


def _build_labels(comparison: TokenizerComparison) -> list[str]:
    names = [f"{t.name} ({len(t.pieces):,})" for t in comparison.tokenizers]
    plain = [name.encode("ascii", errors="replace").decode("ascii") for name in names]
    if plain == names:
        return names
    return [f"{index}: {name}" for index, name in enumerate(plain, 1)]


def _build_part_label(comparison: TokenizerComparison, name: str) -> str:
    lines = comparison.counts[0][name].lines
    return tr(
        "{text}\n{lines:,} lines", text=tr("whole text") if name == ALL else name, lines=lines
    )


def _save_png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()
