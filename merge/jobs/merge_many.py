"""Merge many adapters, each into a model of its own, as a file of jobs lists them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import MergeError, as_merge_error, shown
from ..messages import column_width, join, tr, translate
from ..output.preflight import OutputFolder
from ..settings import OnProgress
from ..sizes import size_text
from ..storage.offload import find_existing, require_space
from .jobs_file import MergeRequest, read_jobs
from .merge_lora import merge_lora, verify_result
from .writing import sum_sizes

State = Literal[
    "planned", "done", "complete already", "failed", "wrong", "interrupted", "not started"
]
OnJob = Callable[["JobResult"], object]
_STATES = {
    "planned": tr("planned"),
    "done": tr("done"),
    "complete already": tr("complete already"),
    "failed": tr("failed"),
    "wrong": tr("wrong"),
    "interrupted": tr("interrupted"),
    "not started": tr("not started"),
}


@dataclass(frozen=True)
class JobResult:
    """How a job ended; ``number`` counts from 1 in the order of the file.

    ``text`` is the summary of the merge, or what was wrong, and ``trace`` then where. ``nbytes``
    are those of the result's tensors. A result that ``verify`` finds faults in is ``wrong``. A job
    whose check cannot be made is ``failed``, though its result is there.
    """

    number: int
    output_dir: Path
    state: State
    seconds: float = 0.0
    nbytes: int = 0
    text: str = ""
    trace: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether there is no result, or a wrong or unchecked one."""
        return self.state in ("failed", "wrong")


@dataclass(frozen=True)
class ManyReport:
    """How each job of a file ended, in the order of the file."""

    results: tuple[JobResult, ...]

    @property
    def failures(self) -> tuple[JobResult, ...]:
        """The jobs that failed, or whose result is wrong."""
        return tuple(one for one in self.results if one.is_failure)

    def summary(self) -> str:
        """A table with a line for each job, in the language of ``messages.used_language``."""
        head = [tr("job"), tr("output"), tr("state"), tr("seconds"), tr("size")]
        rows = [[translate(text) for text in row] for row in (head, *map(_make_row, self.results))]
        widths = [max(map(column_width, column)) for column in zip(*rows, strict=True)]
        sides = ("right", "left", "left", "right", "right")
        return "\n".join("  ".join(map(_pad, row, widths, sides)) for row in rows)


def _pad(text: str, width: int, side: str) -> str:
    """A cell as wide as its column, with its text on one side."""
    padding = " " * (width - column_width(text))
    return text + padding if side == "left" else padding + text


def _make_row(result: JobResult) -> tuple[str, ...]:
    seconds = f"{result.seconds:.1f}" if result.seconds else "-"
    size = size_text(result.nbytes) if result.nbytes else "-"
    return str(result.number), shown(str(result.output_dir)), _STATES[result.state], seconds, size


def merge_many(
    jobs_file: str | Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    on_job: OnJob | None = None,
    on_progress: OnProgress | None = None,
    on_verify: OnProgress | None = None,
) -> ManyReport:
    """Run the merges that a YAML or JSON file lists, one after the other.

    docs/many_merges.md describes the file. Every job is checked and planned from headers before the
    first one writes. A job that fails then leaves the others to go on. ``resume`` and ``dry_run``
    are those of ``merge_lora``, for every job: complete results stay as they are.

    ``on_job(result)`` is called when a job has ended, ``on_progress(written, total)`` as bytes are
    written, which counts all jobs, and ``on_verify`` while a base is held against published
    checksums. ``KeyboardInterrupt`` says how each job had ended by then.

    Raises ``MergeError`` for a mistake in the file or in the inputs of any job, of which it names
    the job; nothing is written then.
    """
    requests = read_jobs(Path(jobs_file).expanduser())
    planned = [_plan(request, resume, on_verify) for request in requests]
    _require_room(planned)
    if dry_run:
        for one in planned:
            _call(on_job, one.result)
        return ManyReport(tuple(one.result for one in planned))
    results: list[JobResult] = []
    try:
        for one, progress in zip(planned, _share_progress(planned, on_progress), strict=True):
            results.append(_run(one.request, resume, progress))
            _call(on_job, results[-1])
    except KeyboardInterrupt as interruption:
        table = ManyReport((*results, *_list_unfinished(requests[len(results) :]))).summary()
        state = str(interruption) or tr("--resume goes on with the jobs that are not complete")
        interruption.args = (join("\n", [state, table]),)
        raise
    return ManyReport(tuple(results))


def _call(on_job: OnJob | None, result: JobResult) -> None:
    if on_job is not None:
        on_job(result)


@dataclass(frozen=True)
class _CheckedJob:
    """A job that was planned once; ``disk_bytes`` are what it needs at most, 0 if it is complete.

    The plan itself is not kept: opened inputs take memory, and may change until the job's turn.
    """

    request: MergeRequest
    result: JobResult
    disk_bytes: int


def _plan(request: MergeRequest, resume: bool, on_verify: OnProgress | None) -> _CheckedJob:
    started = time.monotonic()
    with request.located():
        report = merge_lora(**request.keywords, resume=resume, dry_run=True, on_verify=on_verify)
    result = JobResult(
        request.number,
        request.output_dir,
        "complete already" if report.was_complete else "planned",
        time.monotonic() - started,
        report.plan.tensor_bytes,
        report.summary(),
    )
    return _CheckedJob(request, result, 0 if report.was_complete else report.plan.disk_bytes)


def _require_room(planned: Sequence[_CheckedJob]) -> None:
    """Require room for all results together, on each disk in the order of the jobs.

    An earlier result that a job replaces is there until the job is done. Raises ``OutputError``.
    """
    taken: dict[int, int] = {}
    for one in planned:
        if not one.disk_bytes:
            continue
        with one.request.located():
            folder = OutputFolder(one.request.output_dir)
            disk = find_existing(folder.path).stat().st_dev
            needed, left_behind = taken.get(disk, 0) + one.disk_bytes, sum_sizes(folder.leftovers)
            results = tr("the results up to that of job {number}", number=one.request.number)
            require_space(folder.path, needed, left_behind, results)
            taken[disk] = needed - left_behind - sum_sizes(folder.replaceable)


def _share_progress(
    planned: Sequence[_CheckedJob], on_progress: OnProgress | None
) -> Iterator[OnProgress | None]:
    """For each job yield a function that takes its progress and reports that of all jobs."""
    total, before = sum(one.result.nbytes for one in planned), 0
    for one in planned:
        yield None if on_progress is None else _shift(on_progress, before, total)
        before += one.result.nbytes


def _shift(on_progress: OnProgress, before: int, total: int) -> OnProgress:
    return lambda done, _: on_progress(before + done, total)


def _run(request: MergeRequest, resume: bool, on_progress: OnProgress | None) -> JobResult:
    """Run one job; what ends it without a result is in what is returned."""
    started, where = time.monotonic(), (request.number, request.output_dir)
    try:
        report = merge_lora(**request.keywords, resume=resume, on_progress=on_progress)
        text, nbytes = report.summary(), report.plan.tensor_bytes
        state: State = "complete already" if report.was_complete else "done"
        if request.verify:
            found = verify_result(request.keywords)
            text = join("\n", [text, *map(str, found.faults), found.summary()])
            state = "wrong" if found.faults else state
    except (MergeError, OSError) as error:
        seconds, text = time.monotonic() - started, str(as_merge_error(error))
        return JobResult(*where, "failed", seconds, text=text, trace=traceback.format_exc())
    return JobResult(*where, state, time.monotonic() - started, nbytes, text)


def _list_unfinished(requests: Sequence[MergeRequest]) -> Iterator[JobResult]:
    """What an interruption leaves: the job that was running, and those that follow it."""
    for position, one in enumerate(requests):
        yield JobResult(one.number, one.output_dir, "not started" if position else "interrupted")
