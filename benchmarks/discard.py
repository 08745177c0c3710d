"""A sink: files lose their blocks again soon after they were written, so any model fits.

The writing process notices nothing: it writes every byte to the disk. What lies well behind the
end of a file is given back by punching holes; the file keeps its length.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path

KEPT_BYTES = 1 << 30  # at the end of a file, where it is still being written
BLOCK = 4096
STAT_BLOCK = 512  # what st_blocks counts
INTERVAL_SECONDS = 0.25
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of <linux/falloc.h>


class Discard(threading.Thread):
    """Empties the files below a folder until it is stopped. Linux only.

    ``error`` says why holes cannot be punched there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._over = threading.Event()
        self.error: OSError | None = None

    def run(self) -> None:
        """Look for what was written until told to stop."""
        while not self._over.wait(INTERVAL_SECONDS) and self.error is None:
            for path in self._folder.rglob("*"):
                try:
                    _empty(path)
                except (FileNotFoundError, IsADirectoryError):  # renamed in between; a folder
                    continue
                except OSError as error:
                    self.error = error

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join()


def _empty(path: Path) -> None:
    """Give back everything but the end; a file may have got its whole length from the start."""
    with path.open("r+b") as file:
        status = os.fstat(file.fileno())
        end = (status.st_size - KEPT_BYTES) // BLOCK * BLOCK
        if end > 0 and status.st_blocks * STAT_BLOCK > KEPT_BYTES:
            punch(file.fileno(), 0, end)


def punch(handle: int, offset: int, length: int) -> None:
    """Give a range of a file back. Raises ``OSError`` where the file system cannot."""
    if sys.platform != "linux":
        raise OSError("holes can be punched on Linux only")
    libc = ctypes.CDLL(None, use_errno=True)
    place = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
    if libc.fallocate64(handle, KEEP_SIZE | PUNCH_HOLE, *place):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
