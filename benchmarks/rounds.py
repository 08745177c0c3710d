"""Commands measured in turns, so that what else the machine does meets all of them alike.

One round runs every command once, and before each of them the floors it is compared with; one more
pass over the floors ends the last round. So every run has each floor before it and after it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import cache, measure
from benchmarks.job import Job, program
from benchmarks.measure import Usage
from benchmarks.sink import Sink, wrapped


@dataclass(frozen=True)
class Step:
    """A command under a name, what it reads, and the folder it writes.

    ``makes_output``: the command makes that folder itself. ``job`` is set where the output is a
    merged model that can be compared with float64. A step that ``may_fail`` is dropped if it does.
    """

    name: str
    command: list[str]
    inputs: list[Path]
    output: Path
    makes_output: bool = True
    job: Job | None = None
    may_fail: bool = False


@dataclass(frozen=True)
class Sample:
    """One run. ``cached`` is the share of its inputs that the page cache held before it."""

    step: str
    usage: Usage
    cached: float | None
    said: str
    output_bytes: int


@dataclass
class Rounds:
    """What is to be run, and what came out."""

    work_dir: Path
    floors: Sequence[Step]
    steps: Sequence[Step]
    runs: int
    cold: bool | None  # None: the cache is left as it is
    sink: bool = False
    verify: bool = False
    keep_output: bool = False
    samples: list[Sample] = field(default_factory=list)
    verdicts: dict[str, tuple[bool, str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, tell: Callable[[str], object]) -> None:
        """All rounds. Raises ``SystemExit`` when a command that may not fail does."""
        subprocess.run([sys.executable, "-c", "import torch"], check=True)  # bytecode, libraries
        for number in range(1, self.runs + 1):
            for step in self.steps:
                if step.name in self.failures:
                    continue
                for floor in self.floors:
                    self._once(floor, tell)
                if self._once(step, tell) and number == self.runs:
                    self._look_at(step)
        for floor in self.floors:
            self._once(floor, tell)
        self._clear()

    def _once(self, step: Step, tell: Callable[[str], object]) -> bool:
        """Run a step, leaving its output; whether it succeeded."""
        cached = self._prepare(step)
        log = self.work_dir / "command.log"
        sink = Sink(step.output) if self.sink else None
        command = wrapped(step.command, step.output) if sink else step.command
        usage = measure.measure(command, log, step.output, sink)
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        if sink is not None and sink.error is not None:
            raise SystemExit(f"holes cannot be punched here: {sink.error}")
        if usage.exit_code:
            if not step.may_fail:
                raise SystemExit(f"{step.name} ended with {usage.exit_code}:\n{said[-2000:]}")
            lines = said.splitlines() or ["without a word"]
            self.failures[step.name] = f"exit code {usage.exit_code}: {lines[-1][:300]}"
            tell(f"{step.name}: {self.failures[step.name]}")
            return False
        size = sum(sink.sizes.values()) if sink else measure.folder_bytes(step.output)
        self.samples.append(Sample(step.name, usage, cached, said[-200:], size))
        tell(f"{step.name}: {usage.total:.2f} s")
        return True

    def _prepare(self, step: Step) -> float | None:
        """No output, nothing waiting to be written, the cache as it was asked for."""
        self._clear()
        step.output.parent.mkdir(parents=True, exist_ok=True)
        if self.sink or not step.makes_output:
            step.output.mkdir()
        if hasattr(os, "sync"):
            os.sync()
        if self.cold is not None:
            (cache.drop if self.cold else cache.read)(step.inputs)
        return cache.share(step.inputs)

    def _clear(self) -> None:
        for step in (*self.floors, *self.steps):
            shutil.rmtree(step.output, ignore_errors=True)

    def _look_at(self, step: Step) -> None:
        """Compare the last output with float64, and keep it if that was asked for."""
        if self.verify and step.job is not None:
            self.verdicts[step.name] = check_exactness(step.job, step.output)
        if self.keep_output:
            kept = self.work_dir / "kept-output"
            shutil.rmtree(kept, ignore_errors=True)
            step.output.rename(kept)


def check_exactness(job: Job, output: Path) -> tuple[bool, str]:
    """Whether a merged model is what its inputs give, and what that comparison printed."""
    words = [*program("exactness"), "--base_model", str(job.base), "--lora_model"]
    words += [*map(str, job.adapters), "--output_dir", str(output)]
    printed = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    return printed.returncode == 0, printed.stdout + printed.stderr
