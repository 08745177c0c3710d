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
from .lazy import LazyTensor, RowReader, block_rows
from .plan import Plan
from .staging import StagedFolder

# What a span holds at its peak, in multiples of its result: source, result, a piece's copy.
_BUFFERS_PER_SPAN = 4
_SPAN_BYTES = 8 << 20

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Span:
    """Rows ``start`` to ``stop`` of a tensor, and the call that computes them."""

    poured: Poured
    start: int
    stop: int
    read: RowReader

    def compute(self) -> torch.Tensor:
        """The rows, contiguous."""
        return self.read(self.start, self.stop).contiguous()


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
    spans = _spans(plan, _span_bytes(max_memory, num_workers))
    with _one_torch_thread(), ThreadPoolExecutor(num_workers) as pool:
        for span, rows in _in_order(pool, spans, num_workers + 1):
            for piece in span.poured.pieces:
                part = _part(piece, span, rows)
                if part.numel():
                    data = tensor_bytes(part)
                    writers[piece.file].write(data)
                    digests[piece.file][piece.name].update(data)
                    progress(len(data))
    for writer in writers.values():
        writer.close()
    return {
        file: {name: digest.hexdigest() for name, digest in by_name.items()}
        for file, by_name in digests.items()
    }


def _span_bytes(max_memory: int, num_workers: int) -> int:
    return min(_SPAN_BYTES, max_memory // (_BUFFERS_PER_SPAN * (num_workers + 2)))


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
    pool: ThreadPoolExecutor, spans: Iterator[Span], ahead: int
) -> Iterator[tuple[Span, torch.Tensor]]:
    """Compute spans ahead of their turn, ``ahead`` at most, and yield them in their order."""
    waiting: deque[tuple[Span, Future[torch.Tensor]]] = deque()
    try:
        for span in spans:
            waiting.append((span, pool.submit(span.compute)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _part(piece: Piece, span: Span, rows: torch.Tensor) -> torch.Tensor:
    """What of a span belongs to a piece."""
    if piece.axis is None:
        return rows
    if piece.axis == 0:
        first, last = max(piece.start, span.start), min(piece.stop, span.stop)
        return rows[max(0, first - span.start) : max(0, last - span.start)]
    return rows[:, piece.start : piece.stop]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch's own threads out of the way of the workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
