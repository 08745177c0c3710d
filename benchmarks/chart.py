"""The measured records as one picture: seconds on the left, peak memory on the right."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import figures, results
from benchmarks.case import CP, DIRECT
from benchmarks.figures import MIB, Record
from benchmarks.job import program

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of a whole suite; a file with none of them is shown as it is.
SHOWN = (
    *("7b-bin", "7b-safetensors", "7b-pth", "13b-pth2"),
    *("1b-bin", "1b-safetensors", "1b-pth1", "1b-pth2", "70b", "peers", "gguf-f16", "gguf-q8_0"),
)
COLORS = {CP: "#b0b0b0", DIRECT: "#707070"}
MINE, OTHERS = "#2a6f97", "#c77d3a"


def draw_in_process(records: Path, picture: Path) -> Path | None:
    """Draw in a process of its own, so that the measuring one stays small."""
    if find_spec("matplotlib") is None:
        return None
    words = [*program("chart"), "--results", str(records), "--output", str(picture)]
    subprocess.run(words, check=True)
    return picture


def draw(records: dict[str, Record], picture: Path) -> None:
    """Bars for the medians, whiskers from the smallest to the largest."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    shown = {name: records[name] for name in SHOWN if name in records} or records
    bars = [(name, step) for name, record in shown.items() for step in figures.steps(record)]
    figure, axes = plt.subplots(1, 2, figsize=(12, 1.2 + 0.28 * len(bars)), sharey=True)
    panels = (("total", 1, "seconds until on the disk"), ("peak_rss", MIB, "peak memory, MiB"))
    for axis, (key, unit, title) in zip(axes, panels, strict=True):
        for place, (name, step) in enumerate(bars):
            _bar(axis, place, shown[name], step, key, unit)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.margins(x=0.12)
        axis.set_title(f"{title} (log scale)")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(bars)), [_label(*bar, len(shown)) for bar in bars])
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(picture, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _label(name: str, step: str, cases: int) -> str:
    return step if cases == 1 else f"{name}: {step}"


def _bar(axis: Axes, place: int, record: Record, step: str, key: str, unit: float) -> None:
    value = figures.column(record, step, key, unit)
    if value is None:
        return
    color = COLORS.get(step, MINE if step in record["jobs"] else OTHERS)
    error: Any = [[value.middle - value.low], [value.high - value.middle]]
    axis.barh(place, value.middle, xerr=error, color=color, height=0.7, capsize=2)
    text = f" {value.middle:.0f}" if value.middle >= 100 else f" {value.middle:.1f}"
    axis.text(value.high, place, text, va="center", fontsize=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    draw(results.read(args.results), args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
