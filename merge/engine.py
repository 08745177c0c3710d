"""Runs a plan: spans of rows are read and computed by workers, and written in order.

Each span is a whole number of the blocks that the arithmetic uses, so neither the number of workers
nor the memory budget changes a byte of the result. Every output file is one sequential stream; a
tensor that Meta splits over several files is computed once and its parts go to all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import torch

from .formats import WRITERS
from .formats.files import tensor_bytes
from .layouts.pour import Piece, Poured
from .lazy import LazyTensor, RowReader, block_rows, scratch
from .plan import Plan
from .staging import StagedFolder

_SPAN_BYTES = 8 << 20
# Beside the buffers of spans, a worker needs about this much for a block in float32 and the like.
_SCRATCH_BYTES = 8 << 20

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Span:
    """Rows ``start`` to ``stop`` of a tensor, and the call that computes them."""

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


def run(
    plan: Plan,
    staged: StagedFolder,
    *,
    num_workers: int,
    max_memory: int,
    progress: Progress,
) -> dict[str, dict[str, str]]:
    """Write every weight file of ``plan``; return SHA-256 of each tensor by file and name.

    ``progress`` is called with the number of bytes as they are written.
    """
    writers = {
        name: WRITERS[name[name.rindex(".") :]](staged.create(name), infos)
        for name, infos in plan.files.items()
    }
    digests = {file: {info.name: sha256() for info in infos} for file, infos in plan.files.items()}
    with _one_torch_thread(), ThreadPoolExecutor(num_workers) as pool:
        for span, rows in _in_order(pool, plan, num_workers, max_memory):
            for piece in span.poured.pieces:
                part = _part(piece, span, rows)
                if part.numel():
                    data = tensor_bytes(_contiguous(part))
                    writers[piece.file].write(data)
                    digests[piece.file][piece.name].update(data)
                    progress(len(data))
    for writer in writers.values():
        writer.close()
    return {
        file: {name: digest.hexdigest() for name, digest in by_name.items()}
        for file, by_name in digests.items()
    }


def _spans(plan: Plan, span_bytes: int) -> Iterator[Span]:
    for poured in plan.poured:
        tensor = poured.tensor
        step = _span_rows(tensor, span_bytes)
        read = tensor.reader()
        for start in range(0, tensor.rows, step):
            yield Span(poured, start, min(start + step, tensor.rows), read)


def _span_rows(tensor: LazyTensor, span_bytes: int) -> int:
    """Rows of a span: whole blocks, as many as fit, at least one."""
    grid = block_rows(tensor.shape)
    return grid * max(1, span_bytes // (grid * tensor.row_bytes))


def _in_order(
    pool: ThreadPoolExecutor, plan: Plan, num_workers: int, max_memory: int
) -> Iterator[tuple[Span, torch.Tensor]]:
    """Compute spans ahead of their turn, as far as the buffers go, and yield them in order.

    The rows that are yielded live in a buffer that is used again when the next ones are asked for.
    """
    count = num_workers + 2
    span_bytes = min(_SPAN_BYTES, (max_memory - num_workers * _SCRATCH_BYTES) // count)
    largest = max((_buffer_bytes(item.tensor, span_bytes) for item in plan.poured), default=0)
    free = [torch.empty(largest, dtype=torch.uint8) for _ in range(count)]
    waiting: deque[tuple[Span, torch.Tensor, Future[torch.Tensor]]] = deque()
    spans = _spans(plan, span_bytes)
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


def _contiguous(part: torch.Tensor) -> torch.Tensor:
    if part.is_contiguous():
        return part
    return scratch("part", tuple(part.shape), part.dtype).copy_(part)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch's own threads out of the way of the workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
