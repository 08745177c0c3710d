"""Run jobs of a file: one by itself, or several side by side, of which none disturbs another."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Lock

from ..errors import MergeError, as_merge_error
from ..interruption import deferred_signals
from ..messages import compose, join
from ..settings import OnProgress
from ..storage.offload import Offload
from .job_groups import CheckedJob
from .jobs_file import MergeRequest
from .many_results import JobResult, State
from .merge_lora import make_call, run_call, verify_result
from .shared_models import OpenedModels, Together

# Handlers of signals run in the main thread when it waits no longer than this.
_WAIT_SECONDS = 0.2


class SharedProgress:
    """Adds up how far jobs are, which may run at once, and reports it as that of all of them."""

    def __init__(self, jobs: Sequence[CheckedJob], on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._sizes = {job.request.number: job.result.nbytes for job in jobs}
        self._done = dict.fromkeys(self._sizes, 0)
        self._lock = Lock()

    def follow(self, number: int) -> OnProgress | None:
        """What one job reports to."""
        on_progress = self._on_progress
        if on_progress is None:
            return None

        def report(done: int, _: int) -> None:
            with self._lock:
                self._done[number] = done
                on_progress(sum(self._done.values()), sum(self._sizes.values()))

        return report

    def finish(self, number: int) -> None:
        """Count a job as done, however it has ended."""
        with self._lock:
            self._done[number] = self._sizes[number]


def run_group(
    jobs: Sequence[CheckedJob],
    resume: bool,
    progress: SharedProgress,
    end: Callable[[JobResult], None],
) -> None:
    """Run jobs, side by side if there are several; ``end`` is called as each of them has ended.

    A job that ends without a result leaves the others to go on. ``KeyboardInterrupt``, and errors
    that are no job's own, end all of them; those that had ended before are told first.
    """
    if len(jobs) == 1:
        request = jobs[0].request
        end(_verify(request, _run(request, resume, progress)))
        return
    unchecked: list[tuple[MergeRequest, JobResult]] = []

    def end_or_keep(request: MergeRequest, result: JobResult) -> None:
        if request.verify and not result.is_failure:
            unchecked.append((request, result))  # which takes the memory that the others have now
        else:
            end(result)

    with deferred_signals():
        _run_together([job.request for job in jobs], resume, progress, end_or_keep)
    for request, result in unchecked:
        end(_verify(request, result))


def _run_together(
    requests: Sequence[MergeRequest],
    resume: bool,
    progress: SharedProgress,
    end: Callable[[MergeRequest, JobResult], None],
) -> None:
    from ..engines.group import Group
    from ..tensors.threads import ComputePool

    first = make_call(**requests[0].keywords)
    settings = first.settings
    with (
        Offload(settings.offload_parent, first.output, settings.io) as offload,
        ComputePool(settings.workers) as compute,
        ThreadPoolExecutor(len(requests)) as threads,
    ):
        group, models = Group(len(requests), compute), OpenedModels(offload, are_shared=True)
        running = {}
        for request, member in zip(requests, group.members, strict=True):
            together = Together(member, models)
            future = threads.submit(_run_member, request, resume, progress, together)
            running[future] = request
        try:
            _wait_for_all(running, end)
        finally:
            group.stop()
            wait(running)
            for future, request in running.items():  # those that were stopped, and others
                if future.exception() is None:
                    end(request, future.result())


def _wait_for_all(
    running: dict[Future[JobResult], MergeRequest],
    end: Callable[[MergeRequest, JobResult], None],
) -> None:
    """Tell of jobs as they end, and take them out. Raises the first error that is no job's own."""
    while running:
        done, _ = wait(running, _WAIT_SECONDS, FIRST_COMPLETED)
        for future in sorted(done, key=lambda one: running[one].number):
            end(running.pop(future), future.result())


def _run_member(
    request: MergeRequest, resume: bool, progress: SharedProgress, together: Together
) -> JobResult:
    try:
        return _run(request, resume, progress, together)
    finally:
        together.member.leave()


def _run(
    request: MergeRequest,
    resume: bool,
    progress: SharedProgress,
    together: Together | None = None,
) -> JobResult:
    """Run one job; what ends it without a result is in what is returned."""
    started, where = time.monotonic(), (request.number, request.output_dir)
    try:
        call = make_call(**request.keywords, resume=resume)
        report = run_call(call, progress.follow(request.number), None, together=together)
    except (MergeError, OSError) as error:
        return _fail(JobResult(*where, "failed", time.monotonic() - started), error)
    state: State = "complete already" if report.was_complete else "done"
    seconds = time.monotonic() - started
    return JobResult(*where, state, seconds, report.plan.tensor_bytes, report.summary())


def _verify(request: MergeRequest, result: JobResult) -> JobResult:
    """Check the result of a job that asks for it, if it has one."""
    if not request.verify or result.is_failure:
        return result
    started = time.monotonic()
    try:
        found = verify_result(request.keywords)
    except (MergeError, OSError) as error:
        return _fail(result, error)
    seconds = result.seconds + time.monotonic() - started
    faults = (compose("{fault}", fault=fault) for fault in found.faults)
    text = join("\n", [result.text, *faults, found.summary()])
    return replace(
        result, state="wrong" if found.faults else result.state, seconds=seconds, text=text
    )


def _fail(result: JobResult, error: MergeError | OSError) -> JobResult:
    return replace(
        result,
        state="failed",
        nbytes=0,
        text=compose("{error}", error=as_merge_error(error)),
        trace=traceback.format_exc(),
    )
