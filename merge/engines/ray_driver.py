"""Runs a plan on a Ray cluster: Ray places tasks, and runs those again that die with a machine.

The driver writes nothing itself: it gives finished files their partial names, notes them, and adds
up what tasks return.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..errors import UsageError
from ..formats import TensorInfo
from ..layouts.placement import Stream
from ..messages import join, tr
from ..output.attempts import get_attempt_path, measure_attempts, remove_attempts
from ..output.journal import FileProgress, Journal, WrittenFile, get_partial_path
from ..output.resume import ResumePoint
from ..output.staged_folder import StagedFolder
from ..settings import EngineSettings
from ..sizes import OnBytes, size_text
from ..storage.lock import end_run, name_run
from ..storage.offload import Offload
from ..tensors.digests import FreshDigests, add_partial_digests
from ..tensors.finite import note_nonfinite
from . import ray_worker
from .call import Call
from .ray_cluster import (
    RETRIES,
    MachineLostError,
    connect,
    get_result,
    iter_done,
    make_remote,
)
from .ray_worker import Shipment, TaskResult
from .tasks import Task, divide, select

if TYPE_CHECKING:
    from ..plan.placement import Plan
    from ..tensors.lazy import LazyTensor

# Beside the buffers: Python, torch, the plan, and the factors of adapters that are being read.
_PROCESS_BYTES = 640 << 20
_END_SECONDS = 10.0


@dataclass(frozen=True)
class RayEngine:
    """A cluster to which the driver is connected, and the job for it.

    ``resources`` are what one task takes, as Ray names them.
    """

    shipment: Shipment
    settings: EngineSettings
    resources: Mapping[str, float]

    def check_machines(self) -> None:
        """Require of every machine that may get tasks that it sees the same files.

        Raises ``MergeError`` that names the machine, or says that none is large enough.
        """
        from ray.exceptions import RayTaskError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        checks = {}
        for node in self._find_machines():
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            check = make_remote(num_cpus=0, max_retries=0, scheduling_strategy=place)
            checks[check(ray_worker.check_machine, self.shipment)] = node
        for ref in iter_done(list(checks)):
            try:
                get_result(ref)
            except MachineLostError:  # it gets no tasks then
                continue
            except RayTaskError as error:
                raise _program_error(checks[ref], error) from error

    def _find_machines(self) -> list[dict[str, Any]]:
        """The machines that are large enough for a task."""
        import ray

        wanted = {"CPU": self.resources["num_cpus"], "memory": self.resources["memory"]}
        alive = [node for node in ray.nodes() if node["Alive"]]
        able = [
            node
            for node in alive
            if all(node["Resources"].get(name, 0) >= count for name, count in wanted.items())
        ]
        if not able:
            sizes = (
                tr(
                    "{text:g} CPUs and {text_2}",
                    text=node["Resources"].get("CPU", 0),
                    text_2=size_text(int(node["Resources"].get("memory", 0))),
                )
                for node in alive
            )
            raise UsageError(
                tr("no machine of the cluster is large enough for a task"),
                expected=tr(
                    "{cpu:g} CPUs and {memory}",
                    cpu=wanted["CPU"],
                    memory=size_text(int(wanted["memory"])),
                ),
                found=join("; ", sizes),
                remedy=tr("give a smaller --num_workers or --max_memory, or add a larger machine"),
            )
        return able

    def run(
        self,
        plan: Plan,
        staged: StagedFolder,
        *,
        on_bytes: OnBytes,
        journal: Journal,
        resume_point: ResumePoint,
        named: Mapping[str, LazyTensor],
    ) -> dict[str, WrittenFile]:
        """Write every weight file of ``plan``; return what they have become. See ``local.run``."""
        run = _Run(self, plan, staged, on_bytes, journal, resume_point, named)
        try:
            run.submit()
            run.collect()
        finally:
            run.end()
        return run.written


class _Run:
    """The tasks of one run, and what they have written so far."""

    def __init__(
        self,
        engine: RayEngine,
        plan: Plan,
        staged: StagedFolder,
        on_bytes: OnBytes,
        journal: Journal,
        resume_point: ResumePoint,
        named: Mapping[str, LazyTensor],
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._staged = staged
        self._journal = journal
        self._named = named
        self._digests = FreshDigests(named, resume_point.digests)
        self.written: dict[str, WrittenFile] = {}
        for file, whole in resume_point.files.items():
            self._add(file, WrittenFile(whole.nbytes, whole.sha256.hexdigest()))
            on_bytes(sum(info.nbytes for info in plan.files[file]))
        self._tasks = [
            task
            for stream in plan.streams
            if not self.written.keys() >= set(stream.files)
            for task in divide(plan, stream, engine.settings.task_bytes)
        ]
        self._streams = {file: stream for stream in plan.streams for file in stream.files}
        self._pending: dict[Any, Task | None] = {}
        self._progress = _Progress(plan, staged.folder, self._tasks, on_bytes)

    def submit(self) -> None:
        """Give everything to Ray at once; a file is joined when its parts are there."""
        call = make_remote(**self._engine.resources, max_retries=RETRIES)
        shipment = self._engine.shipment
        parts: dict[tuple[str, ...], list[Any]] = {}
        for task in self._tasks:
            ref = call(ray_worker.write_tensors, shipment, task)
            self._pending[ref] = task
            if task.part is not None:
                parts.setdefault(task.files, []).append(ref)
        for files, refs in parts.items():
            for file in files:
                ref = call(ray_worker.join_parts, shipment, file, results=refs)
                self._pending[ref] = None

    def collect(self) -> None:
        """Take what tasks return, in the order in which they end."""
        for ref in iter_done(list(self._pending), self._progress.report):
            result: TaskResult = get_result(ref)
            task = self._pending.pop(ref)
            add_partial_digests(self._named, result.digests)
            note_nonfinite(self._plan.checked, result.nonfinite)
            if self._plan.measured and result.measured:
                self._plan.measured.add_states(result.measured)
            self._progress.finish(result.files)
            if task is None or task.part is None:
                self._finish(result)

    def _finish(self, result: TaskResult) -> None:
        """Give whole files their partial names, and note streams that are whole with them."""
        folder = self._staged.folder
        for file, written in result.files.items():
            get_attempt_path(folder, file, result.attempt).replace(get_partial_path(folder, file))
            self._add(file, written)
            remove_attempts(folder, [file])  # its parts, and attempts of machines that were lost
        stream = self._streams[next(iter(result.files))]
        if self.written.keys() >= set(stream.files):
            self._note(stream)

    def _add(self, file: str, written: WrittenFile) -> None:
        self.written[file] = written
        self._staged.finish(file, written.sha256)

    def _note(self, stream: Stream) -> None:
        """Write down that all files of a stream are whole."""
        places = {
            file: FileProgress(
                self.written[file].nbytes,
                self.written[file].sha256,
                (0,) * len(self._plan.files[file]),  # no container is written on from there
            )
            for file in stream.files
        }
        self._journal.add(stream.tensors, places, self._digests.take())

    def end(self) -> None:
        """Let what is still running end, and remove what attempts have left.

        Not by ``ray.cancel``: of a task that ends just then, it aborts this process (ray#54527).
        """
        import ray

        if self._pending:
            end_run(self._staged.folder)
            ray.wait(list(self._pending), num_returns=len(self._pending), timeout=_END_SECONDS)
        remove_attempts(self._staged.folder, self._plan.files)


class _Progress:
    """How much is written, as the sizes of files tell it: no attempt counts twice.

    The bytes of a file that is made of parts count half when they are in a part.
    """

    def __init__(self, plan: Plan, folder: Path, tasks: Iterable[Task], on_bytes: OnBytes) -> None:
        self._folder = folder
        self._on_bytes = on_bytes
        self._sizes: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        for task in tasks:
            share = 1.0 if task.part is None else 0.5
            for name, infos in select(plan, task).files.items():
                self._add(name, infos, share)
            if task.part == 0:
                for file in task.files:
                    self._add(file, plan.files[file], share)
        self._done = dict.fromkeys(self._sizes, 0)
        self._reported = 0

    def _add(self, name: str, infos: Sequence[TensorInfo], share: float) -> None:
        self._sizes[name] = sum(info.nbytes for info in infos)
        self._shares[name] = share

    def finish(self, names: Iterable[str]) -> None:
        """Count files whole."""
        self._done |= {name: self._sizes[name] for name in names}

    def report(self) -> None:
        """Look at the files, and report what is new."""
        for name, size in measure_attempts(self._folder, self._sizes).items():
            self._done[name] = max(self._done[name], min(size, self._sizes[name]))
        total = int(sum(self._shares[name] * done for name, done in self._done.items()))
        self._on_bytes(total - self._reported)
        self._reported = total


def _program_error(node: Mapping[str, Any], error: Exception) -> UsageError:
    """The refusal of a machine on which this program, or a package that it needs, is missing."""
    reason = getattr(error, "cause", None) or error
    last = str(reason).strip().rpartition("\n")[2]
    return UsageError(
        tr("this program does not run on a machine of the cluster"),
        found=tr(
            "on {nodemanagerhostname} (node {nodeid}): {last}",
            nodemanagerhostname=node["NodeManagerHostname"],
            nodeid=node["NodeID"],
            last=last,
        ),
        remedy=tr("install the same version of it, with the same extras, on all machines"),
    )


@contextmanager
def open_engine(
    call: Call, settings: EngineSettings, fingerprint: Mapping[str, Any]
) -> Iterator[RayEngine]:
    """Connect to the cluster, or start one on this machine; check its machines.

    Raises ``MergeError`` for a cluster that does not answer, or a machine that lacks something.
    """
    run = uuid4().hex
    name_run(call.output, run)
    resources = {
        "num_cpus": settings.num_workers or 1,
        "memory": settings.memory + _PROCESS_BYTES,
    }
    with (
        Offload(settings.offload_parent, call.output.parent, settings.io) as offload,
        connect(settings.ray_address),
    ):
        place = str(offload.ensure_folder())
        shipment = Shipment(call, fingerprint, run, str(Path.cwd()), place)
        engine = RayEngine(shipment, settings, resources)
        engine.check_machines()
        yield engine
