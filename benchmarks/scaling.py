"""How time and memory grow, and what larger models need on common disks."""

from __future__ import annotations

from benchmarks import figures
from benchmarks.case import CP, DIRECT
from benchmarks.figures import MIB, Record
from benchmarks.shapes import CHINESE_ALPACA_ROWS, SHAPES
from benchmarks.tables import cell

Records = dict[str, Record]
GB = 10**9
SIZES = ("size-0.5b", "size-1b", "size-3b", "7b-bin", "70b")
RANKS = {"plain": "8", "rank 64": "64", "rank 256": "256"}
DISKS = {"hard disk, 150 MB/s": 0.15, "SATA SSD, 500 MB/s": 0.5, "NVMe SSD, 2 GB/s": 2.0}
NEEDED = {"7b": "7B", "13b": "13B", "33b": "33B", "65b": "65B", "70b": "Llama-2-70B"}


def sizes(records: Records) -> list[list[str]]:
    """Time, seconds per gigabyte and memory over the sizes of models."""
    heading = ["model", "output GB", "total s", "s per GB", "peak MiB", f"× {DIRECT}"]
    table = [heading]
    for name in SIZES:
        if name not in records:
            continue
        record = records[name]
        total = figures.column(record, "merge", "total")
        size = record["jobs"]["merge"]["output_bytes"] / GB
        table.append(
            [
                name.removeprefix("size-").removesuffix("-bin")
                + (" (no disk: sparse base, output discarded)" if record["sink"] else ""),
                f"{size:.1f}",
                cell(total),
                f"{total.middle / size:.2f}" if total else "-",
                cell(figures.column(record, "merge", "peak_rss", MIB)),
                cell(figures.ratios(record, "merge", DIRECT)),
            ]
        )
    return table


def ranks(records: Records) -> list[list[str]]:
    """The 1.1B shape with adapters of three ranks."""
    table = [["rank", "total s", "CPU s", "peak MiB", "× rank 8"]]
    if "variants" not in records:
        return table
    record = records["variants"]
    for step, rank in RANKS.items():
        table.append(
            [
                rank,
                cell(figures.column(record, step, "total")),
                cell(figures.column(record, step, "cpu")),
                cell(figures.column(record, step, "peak_rss", MIB)),
                cell(figures.ratios(record, step, "plain")),
            ]
        )
    return table


def shards(records: Records) -> list[list[str]]:
    """The 1.1B shape in one to eight ``.pth`` files."""
    table = [["files", "total s", "CPU s", "peak MiB", f"× {CP}"]]
    if "shards" not in records:
        return table
    record = records["shards"]
    for step in record["jobs"]:
        table.append(
            [
                step.split()[0],
                cell(figures.column(record, step, "total")),
                cell(figures.column(record, step, "cpu")),
                cell(figures.column(record, step, "peak_rss", MIB)),
                cell(figures.ratios(record, step, CP)),
            ]
        )
    return table


def own_rate(records: Records) -> float | None:
    """Output bytes a second of the fastest experiment: what the merge can do on the machine."""
    rates = []
    for name in (*SIZES, "1b-bin"):
        if name in records and not records[name]["sink"]:
            total = figures.column(records[name], "merge", "total")
            if total:
                rates.append(records[name]["jobs"]["merge"]["output_bytes"] / total.middle)
    return max(rates, default=None)


def needs(records: Records) -> list[list[str]]:
    """Disk room and minutes for the published sizes; computed, not measured.

    A disk moves the base once and the output once; the merge itself is no faster than measured.
    """
    rate = own_rate(records)
    table = [["model", "base GB", "output GB", *DISKS]]
    for name, title in NEEDED.items():
        shape = SHAPES[name]
        base, output = shape.nbytes() / GB, shape.nbytes(CHINESE_ALPACA_ROWS) / GB
        row = [title, f"{base:.0f}", f"{output:.0f}"]
        for speed in DISKS.values():
            own = output * GB / rate if rate else None
            seconds = None if own is None else max((base + output) / speed, own)
            row.append("-" if seconds is None else f"{seconds / 60:.1f} min")
        table.append(row)
    return table
