"""Numbers of bytes, for people and from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .messages import tr

OnBytes = Callable[[int], object]
"""Called with how many more bytes have been read or written, perhaps from several threads."""


def size_text(count: int) -> str:
    """Bytes for people.

    >>> size_text(13_476_855_808), size_text(512)
    ('13.5 GB', '512 B')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def parse_size(text: str) -> int:
    """Read ``10GB``, ``512MiB``, ``64k`` or a plain number of bytes.

    >>> parse_size("256MB"), parse_size("1GiB"), parse_size("4096")
    (256000000, 1073741824, 4096)
    """
    number = text.strip().rstrip("BbiI").rstrip()
    binary = "i" in text.lower().removeprefix(number.lower())
    unit = number[-1:].upper()
    try:
        power = " KMGT".index(unit) if unit.isalpha() else 0
        digits = number[:-1] if power else number
        return int(float(digits) * (1024 if binary else 1000) ** power)
    except (ValueError, OverflowError):
        raise ValueError(
            tr("{text!r} is not a size; write for instance 256MB or 10GiB", text=text)
        ) from None


def peak_memory() -> int | None:
    """Most memory that this program ever had resident, in bytes; None where that is not told."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent had before this program began
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int | None:
    """Memory that a program can have without swapping, in bytes; None where that is not told."""
    memory = Path("/proc/meminfo")
    if memory.exists():
        for line in memory.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
