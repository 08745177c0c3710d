"""A process and its children, watched from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB on Linux
SAMPLE_SECONDS = 0.05


class PeakOfTree(threading.Thread):
    """Looks every 50 ms at the resident memory of a process and all its children, added up.

    Pages that processes share count once for each, so the sum is an upper bound. Linux only;
    elsewhere, and for a process without children, the peak that the kernel keeps is the answer.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self._peak = 0

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(SAMPLE_SECONDS):
            if family := children(self._pid):
                self._peak = max(self._peak, sum(map(resident, [self._pid, *family])))

    def stop(self) -> int:
        """Most bytes seen at once while there were children; 0 if there never were."""
        self._over.set()
        self.join()
        return self._peak


def children(pid: int) -> list[int]:
    """All descendants of a process; none where ``/proc`` does not tell."""
    found: list[int] = []
    for listed in Path("/proc").glob(f"{pid}/task/*/children"):
        try:
            direct = [int(word) for word in listed.read_text(encoding="ascii").split()]
        except OSError:  # it has ended in between
            continue
        for child in direct:
            found += [child, *children(child)]
    return found


def resident(pid: int) -> int:
    """Resident bytes of a process, 0 if it has ended."""
    try:
        words = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def wait(
    process: subprocess.Popen[bytes],
) -> tuple[int, float | None, int | None, tuple[int | None, int | None]]:
    """(exit code, processor seconds, peak resident bytes, (read, written)) of a child's family.

    Children for which the child waited are in all four.
    """
    if not hasattr(os, "wait4"):
        return process.wait(), None, None, (None, None)
    traffic: tuple[int | None, int | None] = (None, None)
    sampler = PeakOfTree(process.pid)
    if sys.platform == "linux":
        sampler.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # gone, but not yet forgotten
        traffic = _traffic(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seen = sampler.stop() if sampler.ident else 0
    cpu = usage.ru_utime + usage.ru_stime
    return process.returncode, cpu, max(seen, usage.ru_maxrss * RSS_UNIT), traffic


def _traffic(pid: int) -> tuple[int | None, int | None]:
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    except OSError:  # a kernel without task accounting
        return None, None
    counted = {key: int(value) for key, value in (line.split(": ") for line in lines)}
    return counted["read_bytes"], counted["write_bytes"] - counted["cancelled_write_bytes"]
