"""The page cache: filling it, emptying it, and looking at what it holds."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

BLOCK = 8 << 20
PAGE = mmap.PAGESIZE


def drop(files: Iterable[Path]) -> None:
    """Bring files to the disk and ask the system to forget their pages. Linux only."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: Iterable[Path]) -> None:
    """Read everything once."""
    buffer = memoryview(bytearray(BLOCK))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def share(files: Sequence[Path]) -> float | None:
    """Share of the pages of ``files`` that the page cache holds; None where nobody tells.

    ``mincore`` of a mapping answers for the cache as a whole and brings no page into it.
    """
    if sys.platform != "linux":
        return None
    counts = [_resident_pages(path) for path in files if path.stat().st_size]
    total = sum(pages for _, pages in counts)
    return sum(resident for resident, _ in counts) / max(1, total)


def _resident_pages(path: Path) -> tuple[int, int]:
    """(pages in the cache, pages). Raises ``OSError`` where ``mincore`` does."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = -(-len(mapped) // PAGE)
        told = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapped)  # keeps the mapping until it is let go
        try:
            place = ctypes.c_void_p(ctypes.addressof(anchor))
            if libc.mincore(place, ctypes.c_size_t(len(mapped)), told):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(path))
        finally:
            del anchor
    return pages - bytes(told).count(0), pages
