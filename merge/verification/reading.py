"""Rows of several tensors side by side, read ahead while the ones before are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from ..tensors.lazy import LazyTensor, RowReader, block_rows
from ..tensors.threads import ComputePool

# Two of these are in memory at a time, over all tensors that are read together.
_SPAN_BYTES = 4 << 20

Rows = tuple[torch.Tensor, ...]


def iter_rows_together(
    tensors: Sequence[LazyTensor], span_bytes: int = _SPAN_BYTES, in_blocks: bool = True
) -> Iterator[tuple[int, int, Rows]]:
    """Yield ``(start, stop, rows)`` from the first row of the longest tensor to its last.

    A shorter tensor gives the rows that it has. The rows live until the next ones are asked for.
    They are whole blocks of the arithmetic, which without ``in_blocks`` is of no matter.
    """
    step = _count_span_rows(tensors, span_bytes, in_blocks)
    total = max(tensor.rows for tensor in tensors)
    readers = [tensor.reader() for tensor in tensors]
    free = [_make_buffers(tensors, min(step, total)) for _ in range(2)]
    spans = iter(range(0, total, step))
    waiting: list[tuple[int, list[torch.Tensor], list[Future[torch.Tensor]]]] = []
    with ComputePool(len(tensors)) as pool:
        while True:
            while free and (start := next(spans, None)) is not None:
                buffers = free.pop()
                jobs = [
                    pool.submit(_fill, tensor, read, buffer, start, min(start + step, total))
                    for tensor, read, buffer in zip(tensors, readers, buffers, strict=True)
                ]
                waiting.append((start, buffers, jobs))
            if not waiting:
                return
            start, buffers, jobs = waiting.pop(0)
            yield start, min(start + step, total), tuple(job.result() for job in jobs)
            free.append(buffers)


def _count_span_rows(tensors: Sequence[LazyTensor], span_bytes: int, in_blocks: bool) -> int:
    """Rows of a span: whole blocks of the arithmetic or rows, as many as fit, at least one."""
    grid = block_rows(tensors[0].shape) if in_blocks else 1
    row_bytes = sum(tensor.row_bytes for tensor in tensors)
    return grid * max(1, span_bytes // max(1, grid * row_bytes))


def _make_buffers(tensors: Sequence[LazyTensor], rows: int) -> list[torch.Tensor]:
    return [
        torch.empty((min(rows, tensor.rows), *tensor.shape[1:]), dtype=tensor.dtype)
        for tensor in tensors
    ]


def _fill(
    tensor: LazyTensor, read: RowReader, buffer: torch.Tensor, start: int, stop: int
) -> torch.Tensor:
    count = max(0, min(stop, tensor.rows) - start)
    rows = buffer[:count]
    if count:
        read(start, start + count, rows)
    return rows


@dataclass(frozen=True)
class _RowRange(LazyTensor):
    """The rows of ``base`` from ``first`` on, as many as ``shape`` says."""

    base: LazyTensor
    first: int

    def reader(self) -> RowReader:
        read, first = self.base.reader(), self.first

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            read(first + start, first + stop, out)

        return fill


def slice_rows(tensor: LazyTensor, first: int, last: int) -> LazyTensor:
    """Rows ``first`` to ``last``; the tensor itself where these are all."""
    if (first, last) == (0, tensor.rows):
        return tensor
    shape = (last - first, *tensor.shape[1:])
    return _RowRange(shape, tensor.dtype, tensor.origin, tensor, first)
