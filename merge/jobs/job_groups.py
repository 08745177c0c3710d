"""The jobs of a file, each planned once; which of them run side by side, and whether there is room.

Jobs run together that read the same base with the same means: what they read is read once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..messages import tr
from ..output.preflight import OutputFolder
from ..settings import OnProgress, is_on_cluster
from ..storage.offload import find_existing, is_offloaded, require_space
from ..storage.remote_path import RemotePath
from .jobs_file import MergeRequest
from .many_results import JobResult
from .merge_lora import MergeReport, merge_lora
from .writing import sum_sizes

if TYPE_CHECKING:
    from ..layouts.placement import Stream

MOST_TOGETHER = 10
# Files that a process has open beside those of its jobs, and a job beside base and weight files.
_FILES_OF_PROCESS, _FILES_OF_JOB = 64, 16


@dataclass(frozen=True)
class Demand:
    """What a job takes when it runs beside others.

    ``block_bytes`` are those of the largest block of rows, ``base_files`` how many files all of
    them read.
    """

    streams: tuple[Stream, ...]
    block_bytes: int
    base_files: int
    num_workers: int
    max_memory: int


@dataclass(frozen=True)
class CheckedJob:
    """A job that was planned once; ``disk_bytes`` are what it needs at most, 0 if it is complete.

    Jobs of one ``key`` may run side by side; one without runs by itself. The plan is not kept:
    opened inputs take memory, and may change until the job's turn.
    """

    request: MergeRequest
    result: JobResult
    disk_bytes: int
    key: Hashable | None
    demand: Demand


def plan_job(request: MergeRequest, resume: bool, on_verify: OnProgress | None) -> CheckedJob:
    """Plan a job from headers. Raises ``MergeError`` that names it."""
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
    disk_bytes = 0 if report.was_complete else report.plan.disk_bytes
    return CheckedJob(request, result, disk_bytes, _make_key(report), _measure_demand(report))


def _make_key(report: MergeReport) -> Hashable | None:
    """What jobs must have in common to run side by side; None for one that runs by itself.

    PEFT's own merges hold whole tensors, and what is fetched belongs to one job.
    """
    job, settings = report.job, report.job.settings
    models = [job.sources.base.path, *([job.sources.delta.path] if job.sources.delta else [])]
    if (
        report.was_complete
        or is_on_cluster(settings)
        or any(adapter.config.method for adapter in job.adapters)
        or any(isinstance(path, RemotePath) or is_offloaded(path) for path in models)
    ):
        return None
    opening = settings.context_length, settings.allow_quantized_input, settings.offload_parent
    means = settings.io, settings.workers, settings.memory
    return (*(path.resolve() for path in models), *opening, *means)


def _measure_demand(report: MergeReport) -> Demand:
    from ..engines.spans import count_block_bytes

    plan, settings = report.plan, report.job.settings
    block = max((count_block_bytes(item.tensor) for item in plan.placed), default=0)
    models = [model for model in (report.job.plain, report.job.delta) if model is not None]
    files = sum(len(model.files) for model in models)
    return Demand(plan.streams, block, files, settings.workers, settings.memory)


def divide_into_groups(jobs: Sequence[CheckedJob], most: int) -> list[list[CheckedJob]]:
    """Groups of at most ``most`` jobs, in the order of their first ones, that have room together.

    Every group has a job; a group of one runs as the job by itself.
    """
    groups: list[list[CheckedJob]] = []
    last: dict[Hashable, list[CheckedJob]] = {}
    for job in jobs:
        group = last.get(job.key) if job.key is not None else None
        if group is not None and len(group) < most and _have_room([*group, job]):
            group.append(job)
            continue
        groups.append([job])
        last[job.key] = groups[-1]
    return groups


def _have_room(jobs: Sequence[CheckedJob]) -> bool:
    """Whether memory and open files suffice for jobs side by side."""
    from ..engines.spans import count_group_bytes

    demands = [job.demand for job in jobs]
    one = demands[0]
    block = max(demand.block_bytes for demand in demands)
    needed = count_group_bytes([demand.streams for demand in demands], one.num_workers, block)
    files = 2 * max(len(stream.files) for demand in demands for stream in demand.streams)
    opened = _FILES_OF_PROCESS + 2 * one.base_files + len(jobs) * (files + _FILES_OF_JOB)
    return needed <= one.max_memory and opened <= _count_open_files()


def _count_open_files() -> int:
    """How many files the process may have open."""
    if sys.platform == "win32":
        return 2048  # of handles in the C library, by which Python opens files
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def require_room(groups: Sequence[Sequence[CheckedJob]]) -> None:
    """Require room for all results together, on each disk in the order of the groups.

    An earlier result that a job replaces is there until its group is done. Raises ``OutputError``.
    """
    taken: dict[int, int] = {}
    for group in groups:
        replaced: list[tuple[int, int]] = []
        for one in group:
            if not one.disk_bytes:
                continue
            with one.request.located():
                folder = OutputFolder(one.request.output_dir)
                disk = find_existing(folder.path).stat().st_dev
                needed, left_behind = (
                    taken.get(disk, 0) + one.disk_bytes,
                    sum_sizes(folder.leftovers),
                )
                results = tr("the results up to that of job {number}", number=one.request.number)
                require_space(folder.path, needed, left_behind, results)
                taken[disk] = needed - left_behind
                replaced.append((disk, sum_sizes(folder.replaceable)))
        for disk, nbytes in replaced:
            taken[disk] -= nbytes
