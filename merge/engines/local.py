"""Runs a plan: spans of rows are read and computed by workers, and written in order.

Each span is a whole number of the blocks that the arithmetic uses, so neither the number of workers
nor the memory budget changes a byte of the result. Every output file is one sequential stream; a
tensor that Meta splits over several files is computed once and its parts go to all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ..interruption import raise_if_interrupted
from ..layouts.placement import Piece, PlacedTensor
from ..output.journal import Journal, WrittenFile
from ..output.resume import ResumePoint
from ..output.staged_folder import StagedFolder
from ..plan.placement import Plan
from ..settings import IoMode
from ..sizes import OnBytes
from ..storage.input_file import view_as_bytes
from ..tensors.digests import FreshDigests
from ..tensors.lazy import LazyTensor, RowReader, block_rows, scratch
from ..tensors.threads import ComputePool, use_one_torch_thread
from .writers import OutputFiles

_SPAN_BYTES = 4 << 20
# Beside the buffers of spans, a worker needs about this much for a block in float32 and the like.
_SCRATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class _Span:
    """Rows ``start`` to ``stop`` of a tensor, and the call that computes them.

    ``number`` is the tensor's in the plan.
    """

    number: int
    placed: PlacedTensor
    start: int
    stop: int
    read: RowReader

    def compute(self, buffer: torch.Tensor) -> torch.Tensor:
        """The rows, in the memory of ``buffer``."""
        tensor = self.placed.tensor
        count = self.stop - self.start
        flat = buffer[: count * tensor.row_bytes].view(tensor.dtype)
        out = flat.view(count, *tensor.shape[1:])
        self.read(self.start, self.stop, out)
        return out

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends with it."""
        return self.stop == self.placed.tensor.rows


def run(
    plan: Plan,
    staged: StagedFolder,
    *,
    num_workers: int,
    max_memory: int,
    on_bytes: OnBytes,
    io: IoMode,
    journal: Journal,
    resume_point: ResumePoint,
    named: Mapping[str, LazyTensor],
) -> dict[str, WrittenFile]:
    """Write every weight file of ``plan``; return what they have become.

    ``on_bytes`` is called with the number of bytes as they are written. ``resume_point`` is what
    an interrupted run has written; ``journal`` records how far this one is, with the digests of the
    ``named`` tensors.
    """
    files = OutputFiles(plan, staged, io, on_bytes, resume_point)
    digests = FreshDigests(named, resume_point.digests)
    with _ThreadPools(num_workers) as pools, use_one_torch_thread():
        for span, rows in _compute_in_order(
            pools.compute, plan, num_workers, max_memory, resume_point.done
        ):
            raise_if_interrupted()
            writes: list[Future[None]] = []
            for number, piece in enumerate(span.placed.pieces):
                part = _select_part(piece, span, rows)
                if part.numel():
                    data = view_as_bytes(_make_contiguous(part, number))
                    writes.append(pools.write.submit(files.write, piece.file, data))
            for future in writes:
                future.result()
            if span.is_last:
                progress = files.get_progress({piece.file for piece in span.placed.pieces})
                journal.add(span.number + 1, progress, digests.take())
    return files.written


class _ThreadPools:
    """The threads of a run: workers that compute, and one that writes.

    Writing copies into buffers with torch, whose other threads would wait for work in a loop.
    """

    def __init__(self, num_workers: int) -> None:
        self.compute = ComputePool(num_workers)
        self.write = ComputePool(1)

    def __enter__(self) -> _ThreadPools:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.compute, self.write):
            pool.shutdown(cancel_futures=True)


def _iter_spans(plan: Plan, span_bytes: int, done: int) -> Iterator[_Span]:
    for number, placed in enumerate(plan.placed[done:], start=done):
        tensor = placed.tensor
        step = _count_span_rows(tensor, span_bytes)
        read = tensor.reader()
        for start in range(0, tensor.rows, step):
            yield _Span(number, placed, start, min(start + step, tensor.rows), read)


def _count_span_rows(tensor: LazyTensor, span_bytes: int) -> int:
    """Rows of a span: whole blocks, as many as fit, at least one."""
    grid = block_rows(tensor.shape)
    return grid * max(1, span_bytes // max(1, grid * tensor.row_bytes))


def _compute_in_order(
    pool: ThreadPoolExecutor, plan: Plan, num_workers: int, max_memory: int, done: int
) -> Iterator[tuple[_Span, torch.Tensor]]:
    """Compute spans ahead of their turn, as far as the buffers go, and yield them in order.

    The first ``done`` tensors are left out.

    The rows that are yielded live in a buffer that is used again when the next ones are asked for.
    """
    count = num_workers + 2
    span_bytes = min(_SPAN_BYTES, (max_memory - num_workers * _SCRATCH_BYTES) // count)
    largest = max((_count_buffer_bytes(item.tensor, span_bytes) for item in plan.placed), default=0)
    free = [torch.empty(largest, dtype=torch.uint8) for _ in range(count)]
    waiting: deque[tuple[_Span, torch.Tensor, Future[torch.Tensor]]] = deque()
    spans = _iter_spans(plan, span_bytes, done)
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


def _count_buffer_bytes(tensor: LazyTensor, span_bytes: int) -> int:
    return min(tensor.rows, _count_span_rows(tensor, span_bytes)) * tensor.row_bytes


def _select_part(piece: Piece, span: _Span, rows: torch.Tensor) -> torch.Tensor:
    """What of a span belongs to a piece."""
    if piece.axis is None:
        return rows
    if piece.axis == 0:
        first, last = max(piece.start, span.start), min(piece.stop, span.stop)
        return rows[max(0, first - span.start) : max(0, last - span.start)]
    return rows[:, piece.start : piece.stop]


def _make_contiguous(part: torch.Tensor, number: int) -> torch.Tensor:
    """A part's rows one after the other; parts of one span keep their memory side by side."""
    if part.is_contiguous():
        return part
    return scratch(f"part {number}", tuple(part.shape), part.dtype).copy_(part)
