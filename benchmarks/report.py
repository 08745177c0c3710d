"""The measured steps as a table for people and as JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Usage

MIB = 1 << 20
Runs = Mapping[str, Sequence[Usage]]
COLUMNS: dict[str, Callable[[Usage], float | None]] = {
    "total s": lambda usage: usage.total,
    "command s": lambda usage: usage.wall,
    "cpu s": lambda usage: usage.cpu,
    "peak MiB": lambda usage: _mib(usage.peak_rss),
    "read MiB": lambda usage: _mib(usage.read),
    "written MiB": lambda usage: _mib(usage.written),
}


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


def ratios(runs: Runs, step: str, floor: str) -> list[float]:
    """Each total of ``step`` over the mean of the ``floor`` before and the one after it."""
    floors = [usage.total for usage in runs[floor]]
    return [
        usage.total * 2 / (before + after)
        for usage, before, after in zip(runs[step], floors, floors[1:], strict=False)
    ]


def spread(values: Sequence[float | None]) -> str:
    """``min / median / max``, or a dash for what the system does not tell."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    digits = 0 if min(known) >= 100 else 2
    return " / ".join(f"{value:.{digits}f}" for value in (min(known), median(known), max(known)))


def table(runs: Runs) -> str:
    """One row for each step, min / median / max in every cell."""
    rows = [["", *COLUMNS]]
    for step, usages in runs.items():
        rows.append([step, *(spread([get(usage) for usage in usages]) for get in COLUMNS.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def machine() -> dict[str, Any]:
    """What the figures were taken on, and at which commit."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return told.stdout.strip() if told.returncode == 0 else None
