"""One experiment: jobs measured in turns with floors and peers, and the record of it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, measure, peers, sink
from benchmarks.job import ROOT, Job, copy_sources, make_models
from benchmarks.rounds import Rounds, Sample, Step

CP, DIRECT = "cp + sync", "O_DIRECT copy"
ROOM = 1.02  # free space wanted, in outputs


@dataclass(frozen=True)
class Case:
    """What is measured together.

    ``jobs`` by the name of their row; all write about as many bytes. ``floors`` are ``cp``,
    ``direct`` and names of jobs that the others are compared with. ``cold``: inputs are dropped
    from the page cache before every run; None: nothing is done about it. ``sink``: outputs go to
    memory and are discarded while they are written. ``throwaway``: models that were made for it
    are deleted again.
    """

    name: str
    jobs: dict[str, Job]
    floors: tuple[str, ...] = ("cp", "direct")
    peers: tuple[str, ...] = ()
    cold: bool | None = False
    runs: int = 3
    verify: bool = False
    keep_output: bool = False
    sink: bool = False
    throwaway: bool = False

    @property
    def job(self) -> Job:
        """The first, which decides how many bytes are copied."""
        return next(iter(self.jobs.values()))


class NoRoomError(Exception):
    """The disk is too small for what is asked."""


def run(case: Case, command: str, tell: Callable[[str], object]) -> dict[str, Any]:
    """Make the models, measure, and return the record, ready for JSON.

    Raises ``NoRoomError``, and ``SystemExit`` when a command of the project's own fails.
    """
    made = [folder for folder in _models(case) if not folder.exists()]
    case.job.work_dir.mkdir(parents=True, exist_ok=True)
    for job in case.jobs.values():
        make_models(job)
    sources = copy_sources(case.job) if {"cp", "direct"} & {*case.floors} else []
    _require_room(case)
    floors, steps, absent = _steps(case, sources)
    rounds = Rounds(
        case.job.work_dir,
        floors,
        steps,
        case.runs,
        case.cold,
        sink=case.sink,
        verify=case.verify,
        keep_output=case.keep_output,
    )
    rounds.run(tell)
    for folder in made if case.throwaway else []:
        shutil.rmtree(folder)
    return _record(case, command, rounds, absent)


def _models(case: Case) -> list[Path]:
    """Every folder of a model, once."""
    folders = [folder for job in case.jobs.values() for folder in (job.base, *job.adapters)]
    return list(dict.fromkeys(folders))


def _require_room(case: Case) -> None:
    """Also that outputs can be discarded, where they have to be."""
    if case.sink and not sink.is_possible():
        raise NoRoomError("discarding outputs needs Linux and unshare (util-linux)")
    free = shutil.disk_usage(case.job.work_dir).free
    wanted = max(job.output_bytes for job in case.jobs.values()) * ROOM
    wanted *= 2 if case.keep_output else 1
    if free < wanted and not case.sink:
        raise NoRoomError(f"{case.job.work_dir} has room for {free:,} bytes, not {wanted:,.0f}")


def _steps(case: Case, sources: list[Path]) -> tuple[list[Step], list[Step], dict[str, str]]:
    """(floors, steps, why a peer is absent)."""
    target = case.job.folder("copy")
    known = {
        "cp": Step(CP, measure.copy_command(sources, target), sources, target, False),
        "direct": Step(
            DIRECT, measure.direct_copy_command(sources, target), sources, target, False
        ),
    }
    mine = {
        name: Step(name, job.command, job.inputs, job.output, job=job)
        for name, job in case.jobs.items()
    }
    floors = [(known | mine)[name] for name in case.floors]
    steps = [step for name, step in mine.items() if name not in case.floors]
    absent: dict[str, str] = {}
    for name in case.peers:
        found = peers.step(name, case.job)
        if isinstance(found, Step):
            steps.append(found)
        else:
            absent[peers.TITLES[name]] = found
    return floors, steps, absent


def is_right(record: dict[str, Any]) -> bool:
    """Whether nothing of the project's own differs from float64; peers may."""
    return all(record["verified"].get(name) is not False for name in record["jobs"])


def _record(case: Case, command: str, rounds: Rounds, absent: dict[str, str]) -> dict[str, Any]:
    return {
        "case": case.name,
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.described(case.job.work_dir),
        "cold": case.cold,
        "runs": case.runs,
        "sink": case.sink,
        "floors": [step.name for step in rounds.floors],
        "jobs": {name: _job_record(job) for name, job in case.jobs.items()},
        "verified": {name: good for name, (good, _) in rounds.verdicts.items()},
        "comparison": {name: table for name, (_, table) in rounds.verdicts.items()},
        "absent": absent | rounds.failures,
        "samples": [_sample_record(sample) for sample in rounds.samples],
    }


def _job_record(job: Job) -> dict[str, Any]:
    words = [Path(word).name if Path(word).is_absolute() else word for word in job.command]
    return {
        "described": job.described(),
        "shape": job.shape_name,
        "num_layers": job.num_layers,
        "output_bytes": job.output_bytes,
        "input_bytes": sum(path.stat().st_size for path in job.inputs),
        "command": " ".join(words),
    }


def _sample_record(sample: Sample) -> dict[str, Any]:
    return {
        "step": sample.step,
        "cached": sample.cached,
        "output_bytes": sample.output_bytes,
        "said": sample.said if sample.step == DIRECT else "",
        **dataclasses.asdict(sample.usage),
        "total": sample.usage.total,
    }


def command_line(program: str, words: Sequence[str]) -> str:
    """How a measurement was started, with no path of this machine in it."""
    shown = [word.replace(str(ROOT), ".") for word in words]
    return " ".join(["python", "-m", f"benchmarks.{program}", *shown])
