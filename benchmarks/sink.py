"""A place for outputs of any size: files in memory that lose their blocks soon after being written.

The command runs in a mount namespace of its own, in which its output folder is a tmpfs that claims
to have room for anything. From outside, holes are punched into what lies behind the end of every
file; it keeps its length, and the command notices nothing. Needs Linux with user namespaces, no
rights.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

KEPT_BYTES = 128 << 20  # at the end of a file, where it is still being written
ROOM_BYTES = 1 << 40
BLOCK = 4096
STAT_BLOCK = 512  # what st_blocks counts
INTERVAL_SECONDS = 0.1
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of <linux/falloc.h>
IN_TMPFS = 'mount -t tmpfs -o size="$1" tmpfs "$0" && shift && exec "$@"'


def is_possible() -> bool:
    """Whether this system can run a command so."""
    return sys.platform == "linux" and shutil.which("unshare") is not None


def wrapped(command: Sequence[str], folder: Path) -> list[str]:
    """``command`` with ``folder``, which must exist, as a tmpfs of its own; the same process."""
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c", IN_TMPFS]
    return [*own, str(folder), str(ROOM_BYTES), *command]


class Sink(threading.Thread):
    """Empties the files of a process that runs wrapped, until it is stopped.

    ``sizes`` are the lengths of the files when they were last seen. Where holes cannot be punched,
    ``error`` says why and the process is ended, before it fills the memory.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._pid = 0
        self._over = threading.Event()
        self.sizes: dict[int, int] = {}
        self.error: OSError | None = None

    def begin(self, pid: int) -> None:
        """Look at the files as process ``pid`` sees them."""
        self._pid = pid
        self.start()

    def run(self) -> None:
        """Look for what was written until told to stop."""
        folder = Path(f"/proc/{self._pid}/root") / self._folder.resolve().relative_to("/")
        while not self._over.wait(INTERVAL_SECONDS) and self.error is None:
            for path in folder.rglob("*"):
                try:
                    self._empty(path)
                except (FileNotFoundError, IsADirectoryError):  # renamed in between; a folder
                    continue
                except OSError as error:
                    self.error = error
                    os.kill(self._pid, signal.SIGKILL)
                    return

    def _empty(self, path: Path) -> None:
        """Give back all but the end; a file may have got its whole length from the start."""
        with path.open("r+b") as file:
            status = os.fstat(file.fileno())
            self.sizes[status.st_ino] = status.st_size
            end = (status.st_size - KEPT_BYTES) // BLOCK * BLOCK
            if end > 0 and status.st_blocks * STAT_BLOCK > KEPT_BYTES:
                punch(file.fileno(), 0, end)

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join()


def punch(handle: int, offset: int, length: int) -> None:
    """Give a range of a file back. Raises ``OSError`` where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
    if libc.fallocate64(handle, KEEP_SIZE | PUNCH_HOLE, *place):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
