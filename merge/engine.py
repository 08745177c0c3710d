"""Runs a plan: spans of rows are read and computed by workers, and written in order.

Each span is a whole number of the blocks that the arithmetic uses, so neither the number of workers
nor the memory budget changes a byte of the result. Every output file is one sequential stream; a
tensor that Meta splits over several files is computed once and its parts go to all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import torch

from .digests import Digested
from .direct_io import Begun, OutputStream
from .formats import WRITERS, ContainerWriter
from .formats.files import tensor_bytes
from .journal import Journal, Past, Place, Prefix, Reached
from .layouts.pour import Piece, Poured
from .lazy import LazyTensor, RowReader, block_rows, scratch
from .plan import Plan
from .settings import IoMode
from .staging import StagedFolder

_SPAN_BYTES = 4 << 20
# What goes to the disk at a time, over all files that are open at once.
_WRITE_BYTES = 8 << 20
_LEAST_WRITE = 1 << 20
# Beside the buffers of spans, a worker needs about this much for a block in float32 and the like.
_SCRATCH_BYTES = 8 << 20

Progress = Callable[[int], object]


@dataclass(frozen=True)
class WrittenFile:
    """Size and SHA-256 of a file that was written whole."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Span:
    """Rows ``start`` to ``stop`` of a tensor, and the call that computes them.

    ``number`` is the tensor's in the plan.
    """

    number: int
    poured: Poured
    start: int
    stop: int
    read: RowReader

    def compute(self, buffer: torch.Tensor) -> torch.Tensor:
        """The rows, in the memory of ``buffer``."""
        tensor = self.poured.tensor
        count = self.stop - self.start
        flat = buffer[: count * tensor.row_bytes].view(tensor.dtype)
        out = flat.view(count, *tensor.shape[1:])
        self.read(self.start, self.stop, out)
        return out

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends with it."""
        return self.stop == self.poured.tensor.rows


def run(
    plan: Plan,
    staged: StagedFolder,
    *,
    num_workers: int,
    max_memory: int,
    progress: Progress,
    io: IoMode,
    journal: Journal,
    past: Past,
    named: Mapping[str, LazyTensor],
) -> dict[str, WrittenFile]:
    """Write every weight file of ``plan``; return what they have become.

    ``progress`` is called with the number of bytes as they are written. ``past`` is what an earlier
    run has written of it, ``journal`` where this one writes down how far it is, with the digests of
    the ``named`` tensors.
    """
    files = _Files(plan, staged, io, progress, past)
    digests = _Digests(named, past)
    with _one_torch_thread(), _Lanes(num_workers) as lanes:
        for span, rows in _in_order(lanes.compute, plan, num_workers, max_memory, past.done):
            taken: list[Future[None]] = []
            for number, piece in enumerate(span.poured.pieces):
                part = _part(piece, span, rows)
                if part.numel():
                    data = tensor_bytes(_contiguous(part, number))
                    taken.append(lanes.write.submit(files.write, piece.file, data))
            for future in taken:
                future.result()
            if span.is_last:
                reached = files.reached({piece.file for piece in span.poured.pieces})
                journal.add(span.number + 1, reached, digests.new())
    return files.written


class _Digests:
    """The content digests of tensors, each told once, when it is known."""

    def __init__(self, named: Mapping[str, LazyTensor], past: Past) -> None:
        self._open = {name: item for name, item in named.items() if isinstance(item, Digested)}
        for name, digest in past.digests.items():
            if tensor := self._open.pop(name, None):
                tensor.digest.restore(digest, tensor.rows)

    def new(self) -> dict[str, str]:
        """Those that have become known since the last call."""
        known = {
            name: digest
            for name, tensor in self._open.items()
            if (digest := tensor.digest.hexdigest(tensor.rows)) is not None
        }
        for name in known:
            del self._open[name]
        return known


class _Files:
    """The output files of a run: each opened with its first tensor and closed after its last."""

    def __init__(
        self, plan: Plan, staged: StagedFolder, io: IoMode, progress: Progress, past: Past
    ) -> None:
        self._plan = plan
        self._staged = staged
        self._io = io
        self._progress = progress
        self._writers: dict[str, ContainerWriter] = {}
        self._streams: dict[str, OutputStream] = {}
        self.written: dict[str, WrittenFile] = {}
        at_once = max((len(item.pieces) for item in plan.poured), default=1)
        self._buffer_bytes = max(_LEAST_WRITE, _WRITE_BYTES // at_once)
        self._told: dict[str, int] = {}
        for file, prefix in past.files.items():
            self._take_up(file, prefix)

    def _take_up(self, file: str, begun: Prefix) -> None:
        """Go on with a file of an earlier run, or leave it as it is when it is whole."""
        infos = self._plan.files[file]
        if len(begun.finished) == len(infos):
            digest = begun.sha256.hexdigest()
            self._staged.finish(file, digest)
            self.written[file] = WrittenFile(begun.nbytes, digest)
        else:
            self._opened(file, begun)
        self._told[file] = len(begun.finished)
        self._progress(sum(info.nbytes for info in infos[: len(begun.finished)]))

    def write(self, file: str, data: memoryview) -> None:
        """Append to the tensor whose turn it is in ``file``."""
        writer = self._writers.get(file) or self._opened(file)
        writer.write(data)
        if writer.is_complete:
            writer.close()
            self._staged.finish(file)
            stream = self._streams.pop(file)
            self.written[file] = WrittenFile(stream.tell(), stream.hexdigest())
            del self._writers[file]
        self._progress(len(data))

    def _opened(self, file: str, begun: Prefix | None = None) -> ContainerWriter:
        place = Begun(begun.nbytes, begun.sha256) if begun else None
        stream = self._staged.create(file, self._io, self._buffer_bytes, place)
        suffix = file[file.rindex(".") :]
        gate = _Gate(stream, is_open=begun is None)
        cast(BinaryIO, gate).write(self._plan.headers.get(file, b""))
        writer = WRITERS[suffix](cast(BinaryIO, gate), self._plan.files[file])
        if begun:
            writer.skip(begun.finished)
            gate.is_open = True
        self._writers[file], self._streams[file] = writer, stream
        return writer

    def reached(self, files: Iterable[str]) -> dict[str, Reached | Place]:
        """How far files are that a tensor has just ended in."""
        return {file: self._place(file) for file in files}

    def _place(self, file: str) -> Reached | Place:
        before, self._told[file] = self._told.get(file, 0), 0
        if (whole := self.written.get(file)) is not None:
            left = len(self._plan.files[file]) - before
            return Place(whole.nbytes, whole.sha256, (0,) * left)
        finished = self._writers[file].finished
        self._told[file] = len(finished)
        return Reached(self._streams[file], self._streams[file].mark(), finished[before:])


class _Gate:
    """Lets bytes through to a stream when it is open; before, they are in the stream already."""

    def __init__(self, stream: OutputStream, is_open: bool) -> None:
        self._stream = stream
        self.is_open = is_open

    @property
    def closed(self) -> bool:
        """Whether the stream takes no more."""
        return self._stream.closed

    def write(self, data: memoryview) -> int:
        """Write or pass over bytes; return how many."""
        return self._stream.write(data) if self.is_open else len(data)


class _Lanes:
    """The threads of a run: workers that compute, and one that writes."""

    def __init__(self, num_workers: int) -> None:
        self.compute = ThreadPoolExecutor(num_workers)
        self.write = ThreadPoolExecutor(1)

    def __enter__(self) -> _Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.compute, self.write):
            pool.shutdown(cancel_futures=True)


def _spans(plan: Plan, span_bytes: int, done: int) -> Iterator[Span]:
    for number, poured in enumerate(plan.poured[done:], start=done):
        tensor = poured.tensor
        step = _span_rows(tensor, span_bytes)
        read = tensor.reader()
        for start in range(0, tensor.rows, step):
            yield Span(number, poured, start, min(start + step, tensor.rows), read)


def _span_rows(tensor: LazyTensor, span_bytes: int) -> int:
    """Rows of a span: whole blocks, as many as fit, at least one."""
    grid = block_rows(tensor.shape)
    return grid * max(1, span_bytes // (grid * tensor.row_bytes))


def _in_order(
    pool: ThreadPoolExecutor, plan: Plan, num_workers: int, max_memory: int, done: int
) -> Iterator[tuple[Span, torch.Tensor]]:
    """Compute spans ahead of their turn, as far as the buffers go, and yield them in order.

    The first ``done`` tensors are left out.

    The rows that are yielded live in a buffer that is used again when the next ones are asked for.
    """
    count = num_workers + 2
    span_bytes = min(_SPAN_BYTES, (max_memory - num_workers * _SCRATCH_BYTES) // count)
    largest = max((_buffer_bytes(item.tensor, span_bytes) for item in plan.poured), default=0)
    free = [torch.empty(largest, dtype=torch.uint8) for _ in range(count)]
    waiting: deque[tuple[Span, torch.Tensor, Future[torch.Tensor]]] = deque()
    spans = _spans(plan, span_bytes, done)
    try:
        while True:
            while free and (span := next(spans, None)):
                buffer = free.pop()
                waiting.append((span, buffer, pool.submit(span.compute, buffer)))
            if not waiting:
                return
            span, buffer, future = waiting.popleft()
            yield span, future.result()
            free.append(buffer)
    finally:
        for _, _, future in waiting:
            future.cancel()


def _buffer_bytes(tensor: LazyTensor, span_bytes: int) -> int:
    return min(tensor.rows, _span_rows(tensor, span_bytes)) * tensor.row_bytes


def _part(piece: Piece, span: Span, rows: torch.Tensor) -> torch.Tensor:
    """What of a span belongs to a piece."""
    if piece.axis is None:
        return rows
    if piece.axis == 0:
        first, last = max(piece.start, span.start), min(piece.stop, span.stop)
        return rows[max(0, first - span.start) : max(0, last - span.start)]
    return rows[:, piece.start : piece.stop]


def _contiguous(part: torch.Tensor, number: int) -> torch.Tensor:
    """A part's rows one after the other; parts of one span keep their memory side by side."""
    if part.is_contiguous():
        return part
    return scratch(f"part {number}", tuple(part.shape), part.dtype).copy_(part)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch's own threads out of the way of the workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
