"""Copy files past the page cache: what the disk can do, without what the kernel does beside it.

    python direct_copy.py FILE ... DIRECTORY

Two threads move aligned blocks of 8 MiB with O_DIRECT, each reading one and writing it, and every
file is synced at its end. Where O_DIRECT is not to be had, ordinary reads and writes take its
place; the one line printed at the end says which it was.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from pathlib import Path

BLOCK = 8 << 20
THREADS = 2
UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class Copy:
    """One file on its way; threads take its blocks in turn."""

    def __init__(self, source: int, target: int, size: int) -> None:
        self._source = source
        self._target = target
        self._offsets = iter(range(0, size, BLOCK))
        self._lock = threading.Lock()
        self.error: OSError | None = None

    def run(self, buffer: mmap.mmap) -> None:
        """Move blocks until there are none. A file's last block is written whole, to be cut off."""
        while (offset := self._next()) is not None:
            try:
                count = os.preadv(self._source, [buffer], offset)
                whole = -(-count // mmap.PAGESIZE) * mmap.PAGESIZE
                os.pwritev(self._target, [memoryview(buffer)[:whole]], offset)
            except OSError as error:
                self.error = error

    def _next(self) -> int | None:
        with self._lock:
            return None if self.error else next(self._offsets, None)


def copy(source: Path, target: Path, buffers: list[mmap.mmap], flag: int) -> None:
    """Copy one file. Raises ``OSError`` with one of ``UNABLE`` where ``flag`` is not supported."""
    size = source.stat().st_size
    reading = os.open(source, os.O_RDONLY | flag)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag, 0o666)
        try:
            work = Copy(reading, writing, size)
            threads = [threading.Thread(target=work.run, args=(buffer,)) for buffer in buffers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if work.error:
                raise work.error
            os.ftruncate(writing, size)
            os.fsync(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def main(names: list[str]) -> int:
    """Copy all but the last name into the last."""
    *sources, folder = map(Path, names)
    buffers = [mmap.mmap(-1, BLOCK) for _ in range(THREADS)]
    flag = getattr(os, "O_DIRECT", 0)
    for source in sources:
        target = folder / source.name
        try:
            copy(source, target, buffers, flag)
        except OSError as error:
            if not flag or error.errno not in UNABLE:
                raise
            flag = 0
            copy(source, target, buffers, flag)
    print("direct" if flag else "buffered")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
