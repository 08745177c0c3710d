"""Merge many adapters, each into a model of its own, as a file of jobs lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..messages import join, tr
from ..option_checks import require_positive
from ..settings import OnProgress
from ..user_paths import expand_user
from .job_groups import MOST_TOGETHER, CheckedJob, divide_into_groups, plan_job, require_room
from .jobs_file import read_jobs
from .many_results import JobResult, ManyReport, State
from .run_group import SharedProgress, run_group

OnJob = Callable[[JobResult], object]


def merge_many(
    jobs_file: str | Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    together: int | None = None,
    on_job: OnJob | None = None,
    on_progress: OnProgress | None = None,
    on_verify: OnProgress | None = None,
) -> ManyReport:
    """Run the merges that a YAML or JSON file lists, those over one base side by side.

    docs/many_merges.md describes the file. Every job is checked and planned from headers before the
    first one writes. A job that fails then leaves the others to go on. ``resume`` and ``dry_run``
    are those of ``merge_lora``, for every job: complete results stay as they are. Up to
    ``together`` jobs run at once, by default as many as memory has room for, but at most ten.

    ``on_job(result)`` is called when a job has ended, ``on_progress(written, total)`` as bytes are
    written, from several threads, which counts all jobs, and ``on_verify`` while a base is held
    against published checksums. ``KeyboardInterrupt`` says how each job had ended by then.

    Raises ``MergeError`` for a mistake in the file or in the inputs of any job, of which it names
    the job; nothing is written then.
    """
    if together is not None:
        require_positive("together", together)
    requests = read_jobs(expand_user(jobs_file))
    planned = [plan_job(request, resume, on_verify) for request in requests]
    groups = divide_into_groups(planned, together or MOST_TOGETHER)
    require_room(groups)
    if dry_run:
        for one in planned:
            _call(on_job, one.result)
        return ManyReport(tuple(one.result for one in planned))
    ended: dict[int, JobResult] = {}

    def end(result: JobResult) -> None:
        ended[result.number] = result
        progress.finish(result.number)
        _call(on_job, result)

    progress, running = SharedProgress(planned, on_progress), groups[0]
    try:
        for running in groups:
            run_group(running, resume, progress, end)
    except KeyboardInterrupt as interruption:
        unfinished = {**_list_unfinished(planned, "not started")}
        unfinished |= _list_unfinished(running, "interrupted")
        table = ManyReport(_in_order(unfinished | ended)).summary()
        state = str(interruption) or tr("--resume goes on with the jobs that are not complete")
        interruption.args = (join("\n", [state, table]),)
        raise
    return ManyReport(_in_order(ended))


def _call(on_job: OnJob | None, result: JobResult) -> None:
    if on_job is not None:
        on_job(result)


def _in_order(results: Mapping[int, JobResult]) -> tuple[JobResult, ...]:
    return tuple(results[number] for number in sorted(results))


def _list_unfinished(jobs: Sequence[CheckedJob], state: State) -> dict[int, JobResult]:
    """What an interruption leaves of jobs that have not ended, by number."""
    requests = [one.request for one in jobs]
    return {one.number: JobResult(one.number, one.output_dir, state) for one in requests}
