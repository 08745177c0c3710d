"""How many processors this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def count_processors(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Processors of the machine, as far as affinity and the quotas of control groups allow.

    A container's quota (``docker run --cpus 2``) is a share of time: of 2.5 processors, 3 are used.
    ``cgroups`` is where the groups are mounted, ``own`` the file that names those of this process.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quotas = (ceil(quota) for quota in _iter_quotas(cgroups, own))
    return max(1, min(count, *quotas, count))


def _iter_quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Processors that each group of this process, and each group around it, may use in all.

    Files: https://docs.kernel.org/admin-guide/cgroup-v2.html (``cpu.max``) and
    https://docs.kernel.org/scheduler/sched-bwc.html (the first version's two).
    """
    for line in _read(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_second = controllers == ""
        if not is_second and "cpu" not in controllers.split(","):
            continue
        root = cgroups if is_second else cgroups / "cpu"
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            folder = root.joinpath(*parts[:depth])
            if is_second:
                words = _read(folder / "cpu.max").split()
            else:
                words = [_read(folder / f"cpu.cfs_{n}_us").strip() for n in ("quota", "period")]
            if len(words) == 2 and all(map(str.isdigit, words)) and int(words[1]):
                yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
