"""How a merge gains by processors: 1, 2, 4, 8, 16 of them by affinity, as far as there are.

Inputs are in the page cache and the output goes to a RAM disk, so that the disk does not count. For
each number of processors the command and an import of torch alone run in turns, several times;
"rest" is what the first takes beyond the second. CPU seconds do not depend on what else the machine
does, seconds do. The peak is the kernel's own of that process. Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cache, machine, measure, results, tables
from benchmarks.figures import MIB, Spread, spread
from benchmarks.job import OUTPUT_TYPES, Job, make_models
from benchmarks.process import RSS_UNIT
from benchmarks.shapes import SHAPES

NUMBERS = (1, 2, 4, 8, 16)
RAM_DISK = Path("/dev/shm")
GB = 10**9
HEADING = (
    "processors",
    "wall s",
    "rest s",
    "rest / on one",
    "user CPU s",
    "user CPU s / GB, rest",
    "CPU s / GB, rest",
    "peak MiB",
)


@dataclass(frozen=True)
class Run:
    """What a process has used: seconds and bytes."""

    wall: float
    user: float
    system: float
    peak: int

    @property
    def cpu(self) -> float:
        """Seconds of all processors."""
        return self.user + self.system


def run(command: Sequence[str], processors: Sequence[int]) -> Run:
    """Run a command on the given processors.

    Raises ``CalledProcessError``, with what the command said, when it fails.
    """
    environment = {k: v for k, v in os.environ.items() if k not in measure.NOT_A_USERS}
    words = ["taskset", "--cpu-list", ",".join(map(str, processors)), *command]
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        with subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, env=environment
        ) as started:
            _, status, usage = os.wait4(started.pid, 0)
            wall = time.perf_counter() - start
            started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(started.returncode, words, log.read())
    return Run(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * RSS_UNIT)


@dataclass(frozen=True)
class Pair:
    """A merge, and beside it an import of torch alone, on as many processors."""

    merge: Run
    imported: Run
    output_bytes: int

    @property
    def rest(self) -> float:
        """Seconds beyond the import."""
        return self.merge.wall - self.imported.wall

    def per_gb(self, name: str) -> float:
        """Seconds of a kind beyond the import, for each GB of output."""
        beyond: float = getattr(self.merge, name) - getattr(self.imported, name)
        return beyond / self.output_bytes * GB


def measure_pair(command: Sequence[str], output: Path, processors: Sequence[int]) -> Pair:
    """Run both once; the output is removed."""
    imported = run([sys.executable, "-c", "import torch"], processors)
    try:
        merge = run([*command, "--output_dir", str(output)], processors)
        return Pair(merge, imported, measure.folder_bytes(output))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def build_table(pairs: Mapping[int, Sequence[Pair]]) -> list[list[str]]:
    """A row for each number of processors, smallest / middle / largest of the runs."""
    first = pairs[min(pairs)]
    table = [list(HEADING)]
    for count, runs in pairs.items():
        ratios = [one.rest / other.rest for one, other in zip(runs, first, strict=True)]
        columns: list[Spread | None] = [
            spread([one.merge.wall for one in runs]),
            spread([one.rest for one in runs]),
            spread(ratios),
            spread([one.merge.user for one in runs]),
            spread([one.per_gb("user") for one in runs]),
            spread([one.per_gb("cpu") for one in runs]),
            spread([one.merge.peak / MIB for one in runs]),
        ]
        table.append([str(count), *map(tables.cell, columns)])
    return table


def measure_all(
    job: Job, processors: Mapping[int, Sequence[int]], runs: int, disk: Path
) -> dict[int, list[Pair]]:
    """Run everything in turns; the output goes to a folder on ``disk``."""
    make_models(job)
    cache.read(job.inputs)
    pairs: dict[int, list[Pair]] = {count: [] for count in processors}
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        for _ in range(runs):
            for count, numbers in processors.items():
                pairs[count].append(measure_pair(job.command, Path(folder) / "out", numbers))
    return pairs


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """All options; what follows ``--`` goes to the command."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--shape", choices=SHAPES, default="1b")
    made.add_argument("--num_layers", type=int, help="keep only this many layers of the shape")
    made.add_argument("--output_type", choices=OUTPUT_TYPES, default="huggingface")
    made.add_argument("--max_shard_size", default="300MB", help="of Hugging Face's files")
    made.add_argument("--num_shards", type=int, help="of .pth")
    made.add_argument("--processors", type=int, nargs="+", default=NUMBERS)
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--work_dir", type=Path, default=Path("benchmark-output"))
    made.add_argument("--output", type=Path, default=RAM_DISK, help="a folder on a RAM disk")
    made.add_argument("rest", nargs="*", help="further options of the command, after --")
    return made.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep it; exit code 2 where affinity cannot be set."""
    args = parse(words)
    if sys.platform != "linux" or shutil.which("taskset") is None:
        print("error: this needs Linux and taskset", file=sys.stderr)
        return 2
    rest = list(args.rest)
    if args.output_type == "huggingface":
        rest += ["--max_shard_size", args.max_shard_size]
    job = Job(
        args.work_dir,
        args.shape,
        args.num_layers,
        output_type=args.output_type,
        num_shards=args.num_shards,
        rest=tuple(rest),
    )
    there = sorted(os.sched_getaffinity(0))
    counts = [count for count in args.processors if count <= len(there)]
    pairs = measure_all(job, {n: there[:n] for n in counts}, args.runs, args.output)
    table = build_table(pairs)
    found = machine.described(args.work_dir)
    print(f"{job.described()}\n{machine.in_words(found)}\n\n{tables.text(table)}")
    if missing := [str(count) for count in args.processors if count not in counts]:
        print(f"not here, with {len(there)} processors: {', '.join(missing)}")
    path = job.folder(f"cores-{job.name}-{args.output_type}.json")
    results.write(path, {"cores": {"machine": found, "table": table}})
    print(f"all figures: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
