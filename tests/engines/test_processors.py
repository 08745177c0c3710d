"""Processors that a process may use: within affinity and the quotas of its control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from merge.processors import count_processors
from merge.settings import OutputSettings

# More than a quota of these tests allows.
MANY = 64


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: MANY)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)


def make(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Control groups as the kernel shows them; ``own`` are the lines of ``/proc/self/cgroup``."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    (folder / "own").write_text(own, encoding="ascii")
    return folder / "cgroup", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "count"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MANY),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000\n"}, 3),
        ("0::/elsewhere\n", {"cpu.max": "500000 100000\n"}, 5),
        ("0::/../..\n", {"cpu.max": "500000 100000\n"}, 5),
        (
            "5:cpu,cpuacct:/a\n2:memory:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "600000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            6,
        ),
        (
            "5:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            MANY,
        ),
        ("", {}, MANY),
        ("nonsense", {}, MANY),
        ("0::/\n", {"cpu.max": "what is this\n"}, MANY),
        ("0::/\n", {"cpu.max": "200000 0\n"}, MANY),
    ],
)
def test_quotas_of_control_groups_count(
    tmp_path: Path, own: str, files: dict[str, str], count: int
) -> None:
    assert count_processors(*make(tmp_path, own, files)) == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_counts() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from merge.processors import count_processors; print(count_processors())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("processors", "memory", "workers"), [(1, 64, 1), (2, 64, 2), (8, 256, 8)])
def test_default_is_every_processor_with_memory_for_each(
    monkeypatch: pytest.MonkeyPatch, processors: int, memory: int, workers: int
) -> None:
    monkeypatch.setattr("merge.settings.count_processors", lambda: processors)
    settings = OutputSettings()
    assert (settings.memory, settings.workers) == (memory * 10**6, workers)
