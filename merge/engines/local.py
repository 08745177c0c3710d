"""Runs a plan on this machine: several files side by side, each by a stream of its own.

A stream takes spans of rows in order, writes them, and notes in the journal what is whole; the
spans of all streams are computed by one pool of threads. A tensor that Meta splits over several
files is computed once and its parts go to all of them. The bytes are the same for every number of
streams and threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from threading import Event, Lock

from ..interruption import raise_if_interrupted
from ..layouts.placement import Stream
from ..output.journal import Journal, WrittenFile
from ..output.resume import ResumePoint
from ..output.staged_folder import StagedFolder
from ..plan.placement import Plan
from ..settings import IoMode
from ..sizes import OnBytes
from ..storage.input_file import view_as_bytes
from ..tensors.digests import FreshDigests
from ..tensors.lazy import LazyTensor
from ..tensors.threads import ComputePool
from .group import Member
from .spans import Buffers, Span, Submit, compute_in_order, divide, iter_parts
from .writers import OutputFiles

# Handlers of signals run in the main thread when it waits no longer than this.
_WAIT_SECONDS = 0.2


def run(
    plan: Plan,
    staged: StagedFolder,
    *,
    num_workers: int,
    max_memory: int,
    on_bytes: OnBytes,
    io: IoMode,
    journal: Journal | None,
    resume_point: ResumePoint,
    named: Mapping[str, LazyTensor],
    streams: Sequence[Stream] | None = None,
    member: Member | None = None,
) -> dict[str, WrittenFile]:
    """Write the weight files of ``plan``, or of some of its ``streams``; return what they are.

    ``on_bytes`` is called with the number of bytes as they are written, from several threads.
    ``resume_point`` is what an interrupted run has written; ``journal`` records how far this one
    is, with the digests of the ``named`` tensors. The first error of a stream ends all of them.
    """
    streams = plan.streams if streams is None else streams
    todo = [stream for stream in streams if not resume_point.done.issuperset(stream.tensors)]
    shares = divide(todo, num_workers, max_memory, member.size if member else 1)
    names = [file for stream in streams for file in stream.files]
    files = OutputFiles(plan, staged, io, on_bytes, resume_point, names, shares.files)
    record = _Record(files, journal, FreshDigests(named, resume_point.digests))
    buffers = Buffers((plan.placed[n].tensor for one in todo for n in one.tensors), shares)
    stop = Event()

    def write(stream: Stream) -> None:
        tensors = [(n, plan.placed[n]) for n in stream.tensors if n not in resume_point.done]
        for span, rows in compute_in_order(submit, tensors, shares, buffers):
            raise_if_interrupted()
            if stop.is_set():
                return
            for file, part in iter_parts(span, rows):
                files.write(file, view_as_bytes(part))
            if span.is_last:
                record.note(span)

    with _open_pool(num_workers, plan, member) as submit, ComputePool(shares.streams) as writers:
        try:
            _wait_for_all([writers.submit(write, stream) for stream in todo])
        finally:
            stop.set()
            writers.shutdown(cancel_futures=True)
    return files.written


@contextmanager
def _open_pool(num_workers: int, plan: Plan, member: Member | None) -> Iterator[Submit]:
    """What computes spans: threads of this run, or those of its group."""
    if member is not None:
        with member.computing(item.name for item in plan.placed) as submit:
            yield submit
        return
    with ComputePool(num_workers) as pool:
        try:
            yield lambda span, buffer: pool.submit(span.compute, buffer)
        finally:
            pool.shutdown(cancel_futures=True)


class _Record:
    """What all streams note in the journal."""

    def __init__(self, files: OutputFiles, journal: Journal | None, digests: FreshDigests) -> None:
        self._files = files
        self._journal = journal
        self._digests = digests
        self._lock = Lock()

    def note(self, span: Span) -> None:
        """Note that the tensor which ends with ``span`` is whole.

        A content digest is noted before any tensor with that content, so both take one lock.
        """
        with self._lock:
            fresh = self._digests.take()
            if self._journal is not None:
                names = {piece.file for piece in span.placed.pieces}
                self._journal.add([span.number], self._files.get_progress(names), fresh)


def _wait_for_all(streams: Sequence[Future[None]]) -> None:
    """Wait until all streams have ended, or raise the error of the first one that failed."""
    left = set(streams)
    while left:
        done, left = wait(left, _WAIT_SECONDS, return_when=FIRST_EXCEPTION)
        for stream in done:
            stream.result()
