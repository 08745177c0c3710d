"""What a process costs: time, processor, peak memory, bytes to and from the disk.

The measuring process has to stay small: on Linux a child's peak memory starts from that of the
process that forked it. So torch is never imported here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 8 << 20
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB on Linux


@dataclass(frozen=True)
class Usage:
    """One process. Seconds and bytes; ``None`` where the system does not tell."""

    exit_code: int
    wall: float
    sync: float = 0.0
    cpu: float | None = None
    peak_rss: int | None = None
    read: int | None = None
    written: int | None = None

    @property
    def total(self) -> float:
        """Seconds until the last byte is on the disk."""
        return self.wall + self.sync


def measure(command: Sequence[str], log: Path, output: Path) -> Usage:
    """Run ``command``, its messages going to ``log``; then bring what is in ``output`` to disk.

    ``read`` and ``written`` are bytes moved between disk and memory on behalf of the process, by
    ``/proc/PID/io``; pages that were in the cache already do not count.
    """
    with log.open("wb") as messages:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=messages, stderr=subprocess.STDOUT)
        code, cpu, peak, traffic = _wait(process)
        wall = time.perf_counter() - start
    start = time.perf_counter()
    sync_folder(output)
    sync = time.perf_counter() - start
    return Usage(code, wall, sync, cpu, peak, *traffic)


def _wait(
    process: subprocess.Popen[bytes],
) -> tuple[int, float | None, int | None, tuple[int | None, int | None]]:
    """(exit code, processor seconds, peak resident bytes, (read, written)) of a child."""
    if not hasattr(os, "wait4"):
        return process.wait(), None, None, (None, None)
    traffic: tuple[int | None, int | None] = (None, None)
    if sys.platform == "linux":
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # gone, but not yet forgotten
        traffic = _traffic(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return process.returncode, cpu, usage.ru_maxrss * RSS_UNIT, traffic


def _traffic(pid: int) -> tuple[int | None, int | None]:
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    except OSError:  # a kernel without task accounting
        return None, None
    counted = {key: int(value) for key, value in (line.split(": ") for line in lines)}
    return counted["read_bytes"], counted["write_bytes"] - counted["cancelled_write_bytes"]


def copy_command(sources: Sequence[Path], target: Path) -> list[str]:
    """``cp`` where there is one, told to move the bytes and not to share blocks."""
    names = [str(path) for path in (*sources, target)]
    if shutil.which("cp") is None:
        code = "import shutil, sys; [shutil.copy(a, sys.argv[-1]) for a in sys.argv[1:-1]]"
        return [sys.executable, "-c", code, *names]
    told = subprocess.run(["cp", "--help"], capture_output=True, check=False).stdout
    return ["cp", *(["--reflink=never"] if b"--reflink" in told else []), *names]


def copy_head(source: Path, target: Path, size: int) -> None:
    """Write the first ``size`` bytes of ``source`` to ``target``."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while size and (block := reader.read(min(size, BLOCK))):
            size -= writer.write(block)
    if size:
        raise ValueError(f"{source} is {size} bytes too short")


def files_below(folders: Iterable[Path]) -> list[Path]:
    """All files, sorted."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in files_below([folder]))


def sync_folder(folder: Path) -> None:
    """Wait until every file below ``folder`` is on the disk."""
    for path in files_below([folder]):
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def drop_from_cache(files: Iterable[Path]) -> None:
    """Ask the system to forget the pages of clean files. Linux only."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_into_cache(files: Iterable[Path]) -> None:
    """Read everything once."""
    buffer = memoryview(bytearray(BLOCK))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cached_share(files: Sequence[Path]) -> float | None:
    """Share of the bytes of ``files`` that lie in the page cache, by util-linux' ``fincore``."""
    if shutil.which("fincore") is None:
        return None
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, files)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        return None
    resident = sum(int(line) for line in told.stdout.split())
    return resident / max(1, sum(path.stat().st_size for path in files))
