"""Merges that are killed at random points and resumed, as many as wanted.

``python -m tests.interruption.kill_many --runs 1000`` prints how many ended in the right bytes, and
ends with exit code 1 unless all did. Each run is a process of its own that is killed by SIGKILL: on
its way through the bytes, or where it opens, renames, cuts or removes a file. Half of the runs are
killed once more while they go on. The processes are forked, since importing torch takes longer than
all else.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge import merge_lora
from merge.engines import writers as output_files
from merge.output.journal import read_journal
from merge.output.resume import find_resume_point
from merge.storage.lock import LOCK_NAME
from tests.interruption.final_names import require_nothing_half
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.models import ALPACA_ROWS, LLAMA_ROWS, adapter_tensors, save_adapter, save_base

# Pages at a time instead of megabytes: the models are tiny, and something has to reach the disk.
SMALL_WRITES = 4096
KINDS: dict[str, dict[str, Any]] = {
    "pth, 2 shards": {"output_type": "pth", "num_shards": 2},
    "bin, sharded": {"output_type": "huggingface", "max_shard_size": "5KB"},
    "safetensors": {"output_type": "huggingface", "safe_serialization": True},
    "gguf": {"output_type": "gguf", "outtype": "f16"},
    "gguf, split": {"output_type": "gguf", "outtype": "f16", "split_max_size": "4kB"},
    "gguf, q8_0": {"output_type": "gguf", "outtype": "q8_0"},
    "pth over an earlier result": {"output_type": "pth", "overwrite": True},
    "safetensors over another model": {
        "output_type": "huggingface",
        "safe_serialization": True,
        "max_shard_size": "8KB",
        "overwrite": True,
    },
    "gguf over another model": {
        "output_type": "gguf",
        "outtype": "q8_0",
        "split_max_size": "40kB",
        "overwrite": True,
    },
}
# What stands there before, where a result is replaced.
EARLIER: dict[str, dict[str, Any]] = {
    "pth": {"output_type": "huggingface", "max_shard_size": "5KB"},
    "huggingface": {"lora_weights": "0.5,0.5"},
    "gguf": {"lora_weights": "0.5,0.5"},
}
EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir")
Step = Callable[[], None]


@dataclass
class Inputs:
    """A tiny base and two adapters, and wider ones whose rows are long enough for q8_0."""

    folder: Path

    def __post_init__(self) -> None:
        save_base(self.folder / "base")
        tensors = adapter_tensors(LLAMA_ROWS)
        save_adapter(self.folder / "llama", tensors, pieces=LLAMA_ROWS)
        tensors = adapter_tensors(ALPACA_ROWS, seed=700)
        save_adapter(self.folder / "alpaca", tensors, pieces=ALPACA_ROWS)
        wide = self.folder / "wide"
        base = make_base(wide / "base", num_key_value_heads=4)
        make_adapter(wide / "llama", base, rows=131)
        make_adapter(wide / "alpaca", base, rows=132, seed=2)

    def merge(self, out: Path, step: Step, **options: Any) -> None:
        """Merge into ``out``; ``step`` is called on the way."""
        output_files._LEAST_WRITE = output_files._WRITE_BYTES = SMALL_WRITES
        folder = self.folder / "wide" if options.get("outtype") == "q8_0" else self.folder
        merge_lora(
            folder / "base",
            [folder / "llama", folder / "alpaca"],
            out,
            on_progress=lambda *_: step(),
            **options,
        )


def in_a_process(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; return the signal that ended it, 0 for none.

    Raises ``RuntimeError`` when it fails by itself.
    """
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    status = os.waitpid(process, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed by itself")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def counted(out: Path, act: Callable[[int], None]) -> Step:
    """A function that calls ``act`` with 1, 2, 3...; so does whatever changes files in ``out``."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        act(count)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS and any(str(out) in str(argument) for argument in arguments):
            step()

    sys.addaudithook(audit)
    return step


def die_at(point: int) -> Callable[[int], None]:
    """Kill this process at a point."""

    def act(count: int) -> None:
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of all files, hidden ones too, but for the lock of a run that had just ended."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*")
        if path.name != LOCK_NAME
    }


@dataclass
class Case:
    """One kind of output: its options, the bytes it should have, and how many points there are."""

    inputs: Inputs
    options: dict[str, Any]
    work: Path
    before: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)
    points: int = 0

    def __post_init__(self) -> None:
        with self.output() as out:
            self.before = contents(out)
            counter = self.work / "points"

            def note(count: int) -> None:
                with counter.open("w", encoding="utf-8") as stream:
                    stream.write(str(count))

            assert in_a_process(lambda: self.merge(out, note)) == 0
            self.points = int(counter.read_text(encoding="utf-8"))
            self.wanted = contents(out)

    @contextmanager
    def output(self) -> Iterator[Path]:
        """An output folder, with an earlier result where this kind has one."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            out = Path(folder) / "out"
            if "overwrite" in self.options:
                kind = EARLIER[self.options["output_type"]]
                options = kind if "output_type" in kind else self.options | kind
                in_a_process(lambda: self.inputs.merge(out, lambda: None, **options))
            yield out

    def merge(self, out: Path, act: Callable[[int], None], **options: Any) -> None:
        """Merge, acting at each point."""
        self.inputs.merge(out, counted(out, act), **self.options | options)

    def resume(self, out: Path, act: Callable[[int], None], chance: random.Random) -> None:
        """Go on, with other budgets than before: they must not change a byte."""
        options: dict[str, Any] = {"overwrite": False, "resume": out.exists()}
        options["io"] = chance.choice(("auto", "direct", "buffered"))
        options["num_workers"] = chance.choice((1, 2))
        if not any(out.glob(".merge_journal")) and self.before:
            options["overwrite"] = True  # killed before it had begun
        self.merge(out, act, **options)

    def require_whole(self, out: Path) -> None:
        """Under final names are whole files of one result, which cannot be loaded in parts."""
        require_nothing_half(contents(out), self.before, self.wanted)


@dataclass
class Tally:
    """What happened, in numbers."""

    runs: int = 0
    right: int = 0
    kills: int = 0
    resumed: int = 0
    tensors_kept: int = 0
    only_names: int = 0

    def look(self, out: Path) -> None:
        """Count what a killed run has left."""
        self.kills += 1
        record = read_journal(out)
        past = find_resume_point(out, record) if record else None
        self.resumed += bool(past)
        self.tensors_kept += len(past.done) if past else 0
        self.only_names += bool(past and past.committed)

    def __str__(self) -> str:
        return (
            f"{self.right} of {self.runs} runs ended in the right bytes; {self.kills} kills, "
            f"{self.resumed} of them left something to resume "
            f"({self.tensors_kept} tensors; {self.only_names} times all files but their names)"
        )


def run_once(case: Case, chance: random.Random, tally: Tally) -> None:
    """Kill, kill again perhaps, resume, and compare."""
    tally.runs += 1
    with case.output() as out:
        point = chance.randint(1, case.points)
        if in_a_process(lambda: case.merge(out, die_at(point))):
            case.require_whole(out)
            tally.look(out)
            if chance.random() < 0.5 and contents(out) != case.wanted:
                again = chance.randint(1, case.points)
                if in_a_process(lambda: case.resume(out, die_at(again), chance)):
                    case.require_whole(out)
                    tally.look(out)
            if contents(out) != case.wanted:
                in_a_process(lambda: case.resume(out, lambda _: None, chance))
        if contents(out) == case.wanted:
            tally.right += 1
        else:
            print(f"other bytes: {case.options}, killed at {point} of {case.points}")


def main() -> int:
    """Run as many as are wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    chance, tally = random.Random(args.seed), Tally()
    work = Path(tempfile.mkdtemp(prefix="killed-"))
    try:
        inputs = Inputs(work)
        cases = [Case(inputs, options, work) for options in KINDS.values()]
        for name, case in zip(KINDS, cases, strict=True):
            print(f"{name}: {case.points} points at which a run may be killed")
        for number in range(args.runs):
            run_once(cases[number % len(cases)], chance, tally)
    finally:
        shutil.rmtree(work)
    print(tally)
    return 0 if tally.right == tally.runs else 1


if __name__ == "__main__":
    sys.exit(main())
