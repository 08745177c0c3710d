"""What runs on the machines of a Ray cluster: planning the job once more, and its tasks.

Every process plans for itself, from what the job was called with, and keeps the plan for its next
task. A task reads inputs and writes files in folders that all machines see; what it returns is
small.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from ..errors import MergeError, OutputError, UsageError, as_merge_error
from ..messages import tr
from ..output.attempts import AttemptFolder, get_attempt_path, get_part_name
from ..output.fingerprint import compute_fingerprint, describe_entry
from ..output.journal import WrittenFile
from ..output.resume import ResumePoint
from ..output.staged_folder import StagedFolder
from ..storage.lock import read_run
from ..storage.offload import Offload
from ..version import __version__
from .call import Call, PlannedCall
from .tasks import Task, plan_joining, select

if TYPE_CHECKING:
    from ..deltas.observed import MeasuredStates
    from ..plan.placement import Plan
    from ..tensors.digests import PartialDigest
    from ..tensors.lazy import LazyTensor

_WATCH_SECONDS = 0.5
_SHARE = tr(
    "put inputs and output on storage that all machines mount under the "
    "same path, or take that machine out of the cluster"
)


@dataclass(frozen=True)
class Shipment:
    """What a machine needs to plan a job and to tell whether it sees the same files.

    ``run`` is a name of this run alone, which stands in the lock of the output folder as long as it
    goes on; ``folder`` the driver's current folder, from which relative paths lead; ``offload`` a
    folder for unpacked inputs that the driver removes at the end, since Ray ends processes without
    notice.
    """

    call: Call
    fingerprint: Mapping[str, Any]
    run: str
    folder: str
    offload: str


@dataclass(frozen=True)
class TaskResult:
    """What a task has written, in an ``attempt`` of this name, and seen on the way.

    ``digests`` are what is known of tensors' contents, by their names in ``JobInputs.tensors``;
    ``nonfinite`` are the result's tensors that hold NaN or Inf; ``measured`` is for a report.
    """

    attempt: str
    files: Mapping[str, WrittenFile]
    digests: Mapping[str, PartialDigest] = field(default_factory=dict)
    nonfinite: tuple[str, ...] = ()
    measured: MeasuredStates | None = None


@dataclass
class _Kept:
    """The one job that this process has planned last."""

    run: str
    job: PlannedCall
    offload: Offload
    held: ExitStack


_kept: list[_Kept] = []


def run(version: str, name: str, arguments: bytes, *results: bytes) -> bytes:
    """Call a function of this module; all arguments and what it returns are pickled.

    Nothing is unpickled that another ``version`` has pickled: ``UsageError`` then.
    """
    if version != __version__:
        raise UsageError(
            tr("a machine of the cluster has another version of this program"),
            expected=tr("version {version}, as here", version=version),
            found=tr(
                "version {version} on {machine}", version=__version__, machine=describe_machine()
            ),
            remedy=tr("install the same version on all machines"),
        )
    functions = {one.__name__: one for one in (check_machine, write_tensors, join_parts)}
    return pickle.dumps(functions[name](*pickle.loads(arguments), *map(pickle.loads, results)))


def check_machine(shipment: Shipment) -> None:
    """Require that this machine has this program, sees the output folder, and plans the same.

    Raises ``MergeError`` that names the machine.
    """
    _plan_here(shipment)


def write_tensors(shipment: Shipment, task: Task) -> TaskResult:
    """Write whole files, or one part of each of several files."""
    from ..tensors.digests import get_partial_digests
    from ..tensors.finite import find_nonfinite

    here = _plan_here(shipment)
    plan, named = here.job.plan, here.job.reads().tensors(here.job.plan)
    attempt, files = _run_engine(shipment, select(plan, task), named)
    measured = plan.measured.take_states() if plan.measured else None
    found = find_nonfinite(plan.checked)
    return TaskResult(attempt, files, get_partial_digests(named), found, measured)


def join_parts(shipment: Shipment, file: str, *parts: TaskResult) -> TaskResult:
    """Write one file of the parts that other tasks have written."""
    here = _plan_here(shipment)
    folder = shipment.call.output
    paths = [
        get_attempt_path(folder, get_part_name(file, number), part.attempt)
        for number, part in enumerate(parts)
    ]
    plan = plan_joining(here.job.plan, file, paths, here.offload)
    return TaskResult(*_run_engine(shipment, plan, {}))


def _run_engine(
    shipment: Shipment, plan: Plan, named: Mapping[str, LazyTensor]
) -> tuple[str, dict[str, WrittenFile]]:
    """Run a plan here; return the name of the attempt, and what the files have become."""
    from . import local

    settings = shipment.call.settings
    attempt = f"{_get_node_id()[:8]}-{uuid4().hex[:8]}"
    with AttemptFolder(shipment.call.output, attempt) as staged:
        files = local.run(
            plan,
            cast(StagedFolder, staged),
            num_workers=settings.num_workers or 1,
            max_memory=settings.memory,
            io=settings.io,
            on_bytes=_EndWatch(shipment),
            journal=None,  # the driver notes whole tasks
            resume_point=ResumePoint(),
            named=named,
        )
    return attempt, files


class _EndWatch:
    """Called as bytes are written; raises ``OutputError`` when the driver has ended the run.

    Storage that does not answer for a moment ends nothing.
    """

    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment
        self._next = 0.0

    def __call__(self, _: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _WATCH_SECONDS
            with contextlib.suppress(OSError):
                _require_run(self._shipment)


def _plan_here(shipment: Shipment) -> _Kept:
    """The job's plan in this process. Raises ``MergeError`` where it is not the driver's."""
    if _kept and _kept[0].run == shipment.run:
        _require_same_output(shipment)
        return _kept[0]
    while _kept:
        _kept.pop().held.close()
    if Path(shipment.folder).is_dir():  # names of inputs mean here what they mean to the driver
        os.chdir(shipment.folder)
    _require_same_output(shipment)
    with ExitStack() as held:
        settings, place = shipment.call.settings, Path(shipment.offload)
        given = place if settings.offload_parent else None
        offload = held.enter_context(Offload(given, place, settings.io))
        job = _plan(shipment.call, offload)
        this = compute_fingerprint(job.plan, settings, job.reads())
        _require_same_plan(shipment.fingerprint, this)
        _kept.append(_Kept(shipment.run, job, offload, held.pop_all()))
    return _kept[0]


def _plan(call: Call, offload: Offload) -> PlannedCall:
    """Plan the job; the driver could, so that a mistake is one of this machine."""
    try:
        return call.plan(call.find_inputs(offload), offload)
    except (MergeError, OSError) as error:
        told = as_merge_error(error)
        raise UsageError(
            tr("a machine of the cluster does not see the inputs as this one does"),
            file=told.facts.get("file"),
            expected=tr("the same files under the same paths on all machines"),
            found=tr(
                "on {machine}: {sentence}", machine=describe_machine(), sentence=told.sentence
            ),
            remedy=_SHARE,
        ) from error


def _require_same_output(shipment: Shipment) -> None:
    """Require that this machine sees the output folder in which the run goes on.

    Raises ``OutputError``.
    """
    try:
        _require_run(shipment)
    except OSError as error:
        raise _output_error(shipment, error.strerror or str(error)) from error


def _require_run(shipment: Shipment) -> None:
    """Raise ``OutputError`` unless the lock names this run, ``OSError`` if it cannot be read."""
    if read_run(shipment.call.output) != shipment.run:
        raise _output_error(shipment, tr("no lock, or one that does not name it"))


def _output_error(shipment: Shipment, found: str) -> OutputError:
    return OutputError(
        tr("a machine of the cluster does not see the output folder as this one does"),
        file=shipment.call.output,
        expected=tr("the lock of this run in it"),
        found=tr("on {machine}: {found}", machine=describe_machine(), found=found),
        remedy=_SHARE,
    )


def _require_same_plan(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Require the driver's fingerprint: the same files were read, and the same plan was made."""
    if there == here:
        return
    for name in {**there["inputs"], **here["inputs"]}:
        known, found = there["inputs"].get(name), here["inputs"].get(name)
        if known != found:
            raise UsageError(
                tr("a machine of the cluster sees another file than this one"),
                file=name,
                expected=describe_entry(known) if known else tr("nothing, as here"),
                found=tr(
                    "on {machine}: {entry}",
                    machine=describe_machine(),
                    entry=describe_entry(found) if found else tr("nothing"),
                ),
                remedy=_SHARE,
            )
    raise UsageError(
        tr("a machine of the cluster plans another result than this one"),
        found=tr("on {machine}", machine=describe_machine()),
        remedy=tr("install the same versions of this program and of its packages on all machines"),
    )


def describe_machine() -> str:
    """The name of this machine, and its number in the cluster."""
    return tr(
        "{gethostname} (node {node_id})", gethostname=socket.gethostname(), node_id=_get_node_id()
    )


def _get_node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
