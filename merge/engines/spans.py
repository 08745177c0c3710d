"""Spans of rows: computed ahead of their turn by a pool of threads, and handed out in order.

Each span is a whole number of the blocks that the arithmetic uses, so neither the number of threads
nor the memory budget changes a byte of the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from ..layouts.placement import Piece, PlacedTensor, Stream
from ..storage.direct_io import allocate_aligned
from ..tensors.lazy import LazyTensor, RowReader, block_rows, scratch
from .writers import count_write_bytes

_SPAN_BYTES = 4 << 20
# Beside the buffers of spans, a worker needs about this much for a block in float32 and the like.
_SCRATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class Shares:
    """How threads and a budget of memory are divided among streams.

    ``streams`` run at once, with at most ``files`` that are open; each computes into ``buffers`` of
    about ``span_bytes``.
    """

    streams: int
    files: int
    buffers: int
    span_bytes: int


def divide(streams: Sequence[Stream], num_workers: int, max_memory: int, jobs: int = 1) -> Shares:
    """Divide ``num_workers`` threads and ``max_memory`` bytes among the streams to be written.

    Of several ``jobs`` that share both each has one stream at a time, and spans of one block, so
    that spans of all jobs begin at the same rows.
    """
    at_once = max(1, min(len(streams), num_workers)) if jobs == 1 else 1
    files = at_once * jobs * max((len(stream.files) for stream in streams), default=1)
    if jobs > 1:
        return Shares(at_once, files, _count_group_buffers(num_workers), 0)
    buffers = -(-num_workers // at_once) + (2 if at_once == 1 else 1)
    left = max_memory - num_workers * _SCRATCH_BYTES - 2 * files * count_write_bytes(files)
    return Shares(at_once, files, buffers, min(_SPAN_BYTES, left // (at_once * buffers)))


def _count_group_buffers(num_workers: int) -> int:
    """Buffers of each job in a group: as many spans are computed at once as there are threads."""
    return max(2, num_workers)


def count_group_bytes(jobs: Sequence[Sequence[Stream]], num_workers: int, block: int) -> int:
    """Memory that ``jobs`` need side by side, of which each is given by its streams.

    ``block`` is the size of the largest block of rows. A thread keeps one of what all jobs read.
    """
    shares = [divide(streams, num_workers, 0, len(jobs)) for streams in jobs]
    files = max(one.files for one in shares)
    blocks = sum(one.buffers for one in shares) + num_workers
    return num_workers * _SCRATCH_BYTES + 2 * files * count_write_bytes(files) + blocks * block


def count_block_bytes(tensor: LazyTensor) -> int:
    """Bytes of the smallest span of a tensor."""
    return _count_buffer_bytes(tensor, 0)


class Buffers:
    """Memory for spans of any of the given tensors, which streams use one after the other.

    What streams allocate and free by themselves stays with the allocator, in pieces.
    """

    def __init__(self, tensors: Iterable[LazyTensor], shares: Shares) -> None:
        sizes = (_count_buffer_bytes(tensor, shares.span_bytes) for tensor in tensors)
        self._size = max(1, max(sizes, default=1))
        self._free: deque[torch.Tensor] = deque()

    def take(self) -> torch.Tensor:
        """Memory that nobody else uses."""
        try:
            return self._free.pop()
        except IndexError:
            return allocate_aligned(self._size)

    def give_back(self, buffers: Iterable[torch.Tensor]) -> None:
        """Let others use these."""
        self._free.extend(buffers)


@dataclass(frozen=True)
class Span:
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


Submit = Callable[[Span, torch.Tensor], Future[torch.Tensor]]
"""Has a span computed into a buffer by some thread."""


def compute_in_order(
    submit: Submit,
    tensors: Sequence[tuple[int, PlacedTensor]],
    shares: Shares,
    buffers: Buffers,
) -> Iterator[tuple[Span, torch.Tensor]]:
    """Compute spans of ``tensors``, given with their numbers, as far as a stream's buffers go.

    The rows that are yielded live in a buffer that is used again when the next ones are asked for.
    """
    free = [buffers.take() for _ in range(shares.buffers)]
    waiting: deque[tuple[Span, torch.Tensor, Future[torch.Tensor]]] = deque()
    spans = _iter_spans(tensors, shares.span_bytes)
    try:
        while True:
            while free and (span := next(spans, None)):
                buffer = free.pop()
                waiting.append((span, buffer, submit(span, buffer)))
            if not waiting:
                break
            span, buffer, future = waiting.popleft()
            yield span, future.result()
            free.append(buffer)
        buffers.give_back(free)
    finally:
        for _, _, future in waiting:
            future.cancel()


def _iter_spans(tensors: Iterable[tuple[int, PlacedTensor]], span_bytes: int) -> Iterator[Span]:
    for number, placed in tensors:
        tensor = placed.tensor
        step = _count_span_rows(tensor, span_bytes)
        read = tensor.reader()
        for start in range(0, tensor.rows, step):
            yield Span(number, placed, start, min(start + step, tensor.rows), read)


def _count_span_rows(tensor: LazyTensor, span_bytes: int) -> int:
    """Rows of a span: whole blocks, as many as fit, at least one."""
    grid = block_rows(tensor.shape)
    return grid * max(1, span_bytes // max(1, grid * tensor.row_bytes))


def _count_buffer_bytes(tensor: LazyTensor, span_bytes: int) -> int:
    return min(tensor.rows, _count_span_rows(tensor, span_bytes)) * tensor.row_bytes


def iter_parts(span: Span, rows: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What of a span each file gets, one row after the other."""
    for number, piece in enumerate(span.placed.pieces):
        part = _select_part(piece, span, rows)
        if part.numel():
            yield piece.file, _make_contiguous(part, number)


def _select_part(piece: Piece, span: Span, rows: torch.Tensor) -> torch.Tensor:
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
