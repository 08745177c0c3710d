"""What a command costs: time, processor, peak memory, bytes to and from the disk.

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

from benchmarks import process
from benchmarks.cache import BLOCK
from benchmarks.sink import Sink

DIRECT_COPY = Path(__file__).with_name("direct_copy.py")
# A user's shell has neither. Without bytecode, importing torch takes 2 s more each time.
NOT_A_USERS = ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Usage:
    """One command with all its children. Seconds and bytes; ``None``: the system does not tell."""

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


def measure(command: Sequence[str], log: Path, output: Path, sink: Sink | None = None) -> Usage:
    """Run ``command``, its messages going to ``log``; then bring what is in ``output`` to disk.

    ``read`` and ``written`` are bytes moved between disk and memory on behalf of the process, by
    ``/proc/PID/io``; pages that were in the cache already do not count, nor does a ``sink``.
    """
    environment = {key: text for key, text in os.environ.items() if key not in NOT_A_USERS}
    with log.open("wb") as messages:
        start = time.perf_counter()
        started = subprocess.Popen(
            command, stdout=messages, stderr=subprocess.STDOUT, env=environment
        )
        if sink is not None:
            sink.begin(started.pid)
        code, cpu, peak, traffic = process.wait(started)
        wall = time.perf_counter() - start
    if sink is not None:
        sink.stop()
    start = time.perf_counter()
    sync_folder(output)
    sync = time.perf_counter() - start
    return Usage(code, wall, sync, cpu, peak, *traffic)


def copy_command(sources: Sequence[Path], target: Path) -> list[str]:
    """``cp`` where there is one, told to move the bytes and not to share blocks."""
    names = [str(path) for path in (*sources, target)]
    if shutil.which("cp") is None:
        code = "import shutil, sys; [shutil.copy(a, sys.argv[-1]) for a in sys.argv[1:-1]]"
        return [sys.executable, "-c", code, *names]
    told = subprocess.run(["cp", "--help"], capture_output=True, check=False).stdout
    return ["cp", *(["--reflink=never"] if b"--reflink" in told else []), *names]


def direct_copy_command(sources: Sequence[Path], target: Path) -> list[str]:
    """The copy past the page cache."""
    return [sys.executable, "-S", str(DIRECT_COPY), *map(str, (*sources, target))]


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
