"""The machine and the software that figures were taken on, in words."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def described(work_dir: Path) -> dict[str, Any]:
    """Processor, memory, disk, versions, and the commit with a word on changes since."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": _memory(),
        "file_system": _file_system(work_dir),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "commit": _git("rev-parse", "--short=10", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *CODE)),
    }


CODE = ("merge", "scripts", "benchmarks")


def in_words(machine: dict[str, Any]) -> str:
    """One sentence, for documents."""
    memory = machine["memory_bytes"]
    room = f", {memory / (1 << 30):.0f} GiB" if memory else ""
    return (
        f"{machine['cpus']} × {machine['processor']}{room}, {machine['file_system']}, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}"
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _file_system(folder: Path) -> str:
    """Kind of the file system, from the longest mount point above the folder. Linux only."""
    path = Path("/proc/self/mounts")
    if not path.exists():
        return "unknown file system"
    where = folder.resolve()
    mounts = [line.split()[1:3] for line in path.read_text(encoding="utf-8").splitlines()]
    above = [(len(place), kind) for place, kind in mounts if where.is_relative_to(place)]
    return max(above)[1] if above else "unknown file system"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *arguments]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return told.stdout.strip() if told.returncode == 0 else None
