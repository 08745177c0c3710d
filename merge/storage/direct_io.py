"""Direct I/O: reading and writing that bypass the page cache, where that is possible and pays.

Copying through the page cache costs the kernel more than the disk costs, and a file of many
gigabytes that is read once and written once gains nothing from it. Direct I/O wants offsets,
lengths and memory that are multiples of a page; what is not goes through a buffer that is.

Modes: ``auto`` reads a file from the page cache when that holds it already and bypasses it
otherwise, ``direct`` always bypasses it, ``buffered`` never. The bytes are the same.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import torch

PAGE = 4096
# What one read carries: large enough for the disk.
# One page more than a span of rows, because tensors begin anywhere in a page.
READ_BYTES = (4 << 20) + PAGE
# Smaller reads gain nothing: the page cache reads ahead for them.
SMALLEST_READ = 256 << 10
# Places at which a file is asked for in the page cache.
_PROBES = 16
# What a file system that cannot do it answers.
_UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)

O_DIRECT = getattr(os, "O_DIRECT", 0)


def allocate_aligned(size: int) -> torch.Tensor:
    """Memory of its own, on page boundaries, as bytes."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


class _Bounce(threading.local):
    """One aligned buffer for each thread that reads."""

    def __init__(self) -> None:
        self.buffer = allocate_aligned(READ_BYTES)


_bounce = _Bounce()


class DirectReader:
    """Reads large ranges of a file, bypassing the page cache.

    Where direct I/O is not to be had, every read answers 0 and the caller reads as usual.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        self._lock = threading.Lock()

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the beginning of ``buffer`` from ``offset`` on; return how many bytes."""
        handle = self._open()
        if handle < 0:
            return 0
        skipped = offset % PAGE
        wanted = min(READ_BYTES, skipped + len(buffer))
        bounce = _bounce.buffer
        try:
            view = memoryview(bounce.numpy())[: -(-wanted // PAGE) * PAGE]  # type: ignore[arg-type]
            count = os.preadv(handle, [view], offset - skipped) - skipped
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            self.close(for_good=True)
            return 0
        count = max(0, min(count, len(buffer)))
        if count:
            target = torch.frombuffer(buffer, dtype=torch.uint8)
            target[:count].copy_(bounce[skipped : skipped + count])
        return count

    def _open(self) -> int:
        with self._lock:
            if self._handle is None:
                self._handle = open_direct(self._path, os.O_RDONLY)
            return self._handle

    def close(self, for_good: bool = False) -> None:
        """Close the file; ``for_good`` if direct reads have shown not to work on it."""
        with self._lock:
            if self._handle is not None and self._handle >= 0:
                os.close(self._handle)
            self._handle = -1 if for_good else None


def open_direct(path: Path, flags: int) -> int:
    """Open a file for direct I/O; -1 where that is not possible."""
    if not O_DIRECT:
        return -1
    try:
        return os.open(path, flags | O_DIRECT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _UNABLE:
            return -1
        raise


def is_cached(handle: int, size: int) -> bool:
    """Whether the page cache holds a file: a few pages all over it are asked for without waiting.

    Asking makes the kernel read ahead a little, so not every read can begin by asking.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    page = bytearray(PAGE)
    step = max(PAGE, size // _PROBES)
    try:
        return all(
            os.preadv(handle, [page], offset, os.RWF_NOWAIT) > 0 for offset in range(0, size, step)
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, *_UNABLE):
            return False
        raise
