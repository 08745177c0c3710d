"""The last part of every job: write the planned folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from ..engines.call import Call
from ..errors import UsageError
from ..interruption import deferred_signals
from ..messages import tr
from ..output.attempts import remove_attempts
from ..output.complete import is_complete
from ..output.fingerprint import JobInputs, compute_fingerprint, require_same_run
from ..output.journal import JOURNAL_NAME, Journal, WrittenFile, get_partial_path
from ..output.preflight import OutputFolder, existing_model_error, require_free, require_possible
from ..output.repeated import read_recipe
from ..output.resume import (
    ResumePoint,
    find_resume_point,
    keep_whole_streams,
    select_matching_entries,
)
from ..output.staged_folder import StagedFolder, lock_folder
from ..settings import OnProgress, OutputSettings, is_on_cluster
from ..storage.lock import require_unlocked
from ..storage.offload import require_space
from ..storage.remote_path import RemotePath
from ..untrusted.strict_json import dump_json
from ..user_paths import expand_user
from ..version import MANIFEST_NAME
from .job_report import COMPLETE_ALREADY
from .reporting import ReportMaker, add_report, make_report

if TYPE_CHECKING:
    from ..engines.group import Member
    from ..plan.placement import Plan

_GIVEN_THEIR_NAMES = tr("an earlier run had written everything; its files were given their names")


class Job(Protocol):
    """A job that has been checked and planned from headers."""

    @property
    def plan(self) -> Plan:
        """What it writes."""

    def reads(self) -> JobInputs:
        """What it reads."""

    def manifest(self, written: Mapping[str, WrittenFile]) -> dict[str, Any]:
        """The content of the manifest; ``written`` are the weight files by name."""


@contextmanager
def lock_output(
    output: Path, inputs: Iterable[Path], settings: OutputSettings
) -> Iterator[OutputFolder]:
    """Lock the output folder while a job is planned and written; yield its listing.

    Planning may take minutes, in which another run could write into the folder. With ``dry_run``
    nothing is made or locked. Raises ``OutputError`` for a folder that cannot be written to, that
    another run has locked, or that holds files which may not be replaced.
    """
    require_possible(output, inputs)
    if isinstance(output, RemotePath) and is_on_cluster(settings):
        raise UsageError(
            tr("the machines of a cluster do not write to a bucket"),
            file=output,
            expected=tr("a folder that all of them see"),
            remedy=tr("leave --engine ray out, or write to a shared folder and copy that"),
        )
    if isinstance(output, RemotePath):  # a bucket has no locks: uploads replace nothing
        yield _open_output(output, settings)
        return
    if settings.dry_run:
        require_unlocked(output)
        yield _open_output(output, settings)
        return
    with lock_folder(output):
        yield _open_output(output, settings)


def _open_output(output: Path, settings: OutputSettings) -> OutputFolder:
    folder = OutputFolder(output)
    require_free(folder, settings.overwrite, settings.resume)
    return folder


def write(
    job: Job,
    folder: OutputFolder,
    settings: OutputSettings,
    on_progress: OnProgress | None,
    check: Callable[[], None] = lambda: None,
    call: Call | None = None,
    report: ReportMaker | None = None,
    member: Member | None = None,
) -> tuple[str, ...]:
    """Write weights first and the manifest last: with the manifest the folder is complete.

    ``folder`` is locked by ``lock_output``. The files of an earlier result in it are removed when
    the new ones are ready to be renamed into place. ``check`` may raise ``MergeError`` before any
    file gets its final name. With ``dry_run`` nothing is written. ``call`` is needed by engines
    that plan the job once more on other machines. ``report`` is asked for its files when all others
    are written. A ``member`` of a group runs beside the others of it.

    With ``resume``, what an interrupted run has written is checked first, which counts as progress,
    and a complete result of the same run stays as it is. Returns notes on that run. Raises
    ``OutputError`` for the result of another run, unless ``overwrite`` is given.
    """
    plan, output = job.plan, folder.path
    replaced = folder.replaceable
    if settings.resume and not folder.leftovers and replaced:
        planned = job.manifest(dict.fromkeys(plan.files, WrittenFile(0, "")))
        reads = job.reads()
        models = (path for model in reads.models.values() for path in model.files)
        inputs = [*reads.adapters, *models, *filter(None, [plan.imatrix])]
        if is_complete(output, planned, plan.files, inputs):
            return (COMPLETE_ALREADY, *add_report(folder, report))
        if not settings.overwrite:
            raise existing_model_error(output, replaced)
    if not isinstance(output, RemotePath):
        needed = plan.disk_bytes + _count_part_bytes(plan, settings)
        require_space(output, needed, sum_sizes(folder.leftovers))
    if settings.dry_run:
        return ()

    if report is not None:
        on_progress = report.follow(on_progress)
    reads = job.reads()
    this = compute_fingerprint(plan, settings, reads)
    with (
        deferred_signals(),
        _open_engine(settings, call, this, member) as run_engine,
        _stage(output, replaced, plan) as staged,
    ):
        total = plan.tensor_bytes
        past = ResumePoint()
        if settings.resume:
            past = _find_resume_point(folder, plan, this, byte_counter(on_progress, total))
            past = keep_whole_streams(past, plan) if is_on_cluster(settings) else past
        _start_journal(staged, folder, this, replaced, past, plan)
        if past.committed:
            for name, digest in past.committed.items():
                staged.finish(name, digest)
            report_notes: tuple[str, ...] = ()
        else:
            assert staged.journal is not None
            written_files = run_engine(
                plan,
                staged,
                on_bytes=byte_counter(on_progress, total),
                journal=staged.journal,
                resume_point=past,
                named=reads.tensors(plan),
            )
            check()
            if folder.leftovers:  # a machine may have outlived the interrupted run
                remove_attempts(staged.journal_folder, plan.files)
            report_notes = _write_documents(job, staged, written_files, report)
    if past.committed:
        return (_GIVEN_THEIR_NAMES, *add_report(OutputFolder(output), report))
    return (*(_describe_resume(past, plan) if settings.resume else ()), *report_notes)


def _write_documents(
    job: Job,
    staged: StagedFolder,
    weights: Mapping[str, WrittenFile],
    report: ReportMaker | None,
) -> tuple[str, ...]:
    """Write what comes after the weights; return a note on the report where one is asked for."""
    manifest = job.manifest(weights)
    files, report_notes = make_report(report, manifest)
    for name, data in {**job.plan.documents, **files}.items():
        staged.write(name, data)
    staged.write(MANIFEST_NAME, dump_json(manifest))
    return report_notes


@contextmanager
def _open_engine(
    settings: OutputSettings,
    call: Call | None,
    fingerprint: Mapping[str, Any],
    member: Member | None,
) -> Iterator[Callable[..., dict[str, WrittenFile]]]:
    """What runs the plan: this process, or a cluster to which it is connected meanwhile."""
    if is_on_cluster(settings):
        from ..engines.ray_driver import open_engine

        assert call is not None, "only jobs that are called so have the option"
        with open_engine(call, settings, fingerprint) as engine:
            yield engine.run
        return
    from ..engines import local

    yield partial(
        local.run,
        num_workers=settings.workers,
        max_memory=settings.memory,
        io=settings.io,
        member=member,
    )


def _count_part_bytes(plan: Plan, settings: OutputSettings) -> int:
    """Room that a cluster needs beside the result itself."""
    if not is_on_cluster(settings):
        return 0
    from ..engines.tasks import count_part_bytes

    return count_part_bytes(plan, settings.task_bytes)


def _stage(output: Path, replaced: Sequence[Path], plan: Plan) -> StagedFolder:
    if not isinstance(output, RemotePath):
        return StagedFolder(output, obsolete=replaced)
    from ..output.uploaded_folder import UploadedFolder

    sizes = (sum(info.nbytes for info in infos) for infos in plan.files.values())
    return UploadedFolder(output, replaced, max(sizes, default=0))


def make_input_check(job: Job, manifest: str | Path | None) -> Callable[[], None]:
    """Return a function that raises ``VerificationError`` unless a job's inputs are those of a
    manifest, as far as they have been read.
    """
    if manifest is None:
        return lambda: None
    recipe = read_recipe(expand_user(manifest))

    def check() -> None:
        planned = job.manifest(dict.fromkeys(job.plan.files, WrittenFile(0, "")))
        recipe.require_same_inputs(planned["inputs"])

    return check


def sum_sizes(paths: Iterable[Path]) -> int:
    """Bytes of files on disk. A link counts by itself; a file that is gone by now does not count:
    machines of a cluster remove what they have begun when they see that the driver has died.
    """
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def byte_counter(on_progress: OnProgress | None, total: int) -> Callable[[int], None]:
    """Return a function that adds up bytes of any thread, to at most ``total``."""
    done, lock = 0, Lock()

    def progress(count: int) -> None:
        nonlocal done
        with lock:
            done = min(total, done + count)
            if on_progress is not None:
                on_progress(done, total)

    return progress


def _find_resume_point(
    folder: OutputFolder, plan: Plan, this: Mapping[str, Any], progress: Callable[[int], None]
) -> ResumePoint:
    """Find what an interrupted run has left that is intact.

    Raises ``OutputError`` when that run was not ``this`` one.
    """
    record = folder.journal
    if record is None or not record.is_useful:
        return ResumePoint()
    require_same_run(folder.path, record.identity, this)
    entries = select_matching_entries(record.entries, plan)
    past = find_resume_point(folder.path, replace(record, entries=entries), progress)
    return replace(past, unexplained=len(record.entries) - len(entries))


def _start_journal(
    staged: StagedFolder,
    folder: OutputFolder,
    this: Mapping[str, Any],
    replaced: Sequence[Path],
    past: ResumePoint,
    plan: Plan,
) -> None:
    """Open the journal; remove what an interrupted run has left unless some of it is intact."""
    files = (*plan.files, *plan.documents, MANIFEST_NAME)
    journal = Journal(staged.journal_folder, this, files, [path.name for path in replaced])
    if past:
        journal.resume(past.entries, past.digests, past.committed)
    else:
        journal.start()
    kept = {get_partial_path(folder.path, name) for name in (*past.files, *past.committed)}
    for path in folder.leftovers:
        if path.name != JOURNAL_NAME and path not in kept:
            path.unlink(missing_ok=True)
    staged.journal = journal


def _describe_resume(past: ResumePoint, plan: Plan) -> tuple[str, ...]:
    odd = tr(
        "{unexplained} entries of the journal do not match the plan and were ignored",
        unexplained=past.unexplained,
    )
    return (*_describe_resume_point(past, plan), *((odd,) if past.unexplained else ()))


def _describe_resume_point(past: ResumePoint, plan: Plan) -> tuple[str, ...]:
    if not past:
        return (tr("nothing of the interrupted run could be resumed: started over"),)
    return (
        tr(
            "resumed after {n_done} of {n_placed} tensors of the interrupted run",
            n_done=len(past.done),
            n_placed=len(plan.placed),
        ),
    )
