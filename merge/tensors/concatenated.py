"""A tensor that lies in several files, each with a range of its rows or columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from .lazy import LazyTensor, RowReader, block_rows, scratch


@dataclass(frozen=True)
class _Concatenated(LazyTensor):
    """``parts`` one after the other along ``axis`` (0 or 1); all else of their shapes is equal."""

    parts: tuple[LazyTensor, ...]
    axis: int

    def reader(self) -> RowReader:
        sizes = (part.shape[self.axis] for part in self.parts)
        ranges = list(pairwise(accumulate(sizes, initial=0)))
        readers = [part.reader() for part in self.parts]

        def fill_rows(start: int, stop: int, out: torch.Tensor) -> None:
            for read, (first, last) in zip(readers, ranges, strict=True):
                low, high = max(first, start), min(last, stop)
                if low < high:
                    read(low - first, high - first, out[low - start : high - start])

        def fill_columns(start: int, stop: int, out: torch.Tensor) -> None:
            step = block_rows(self.shape)
            for begin in range(start, stop, step):
                end = min(begin + step, stop)
                for read, (first, last) in zip(readers, ranges, strict=True):
                    part = scratch("columns", (end - begin, last - first), self.dtype)
                    read(begin, end, part)
                    out[begin - start : end - start, first:last].copy_(part)

        return fill_rows if self.axis == 0 else fill_columns


def concatenate(parts: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Join matrices of one dtype along ``axis``; a single part is itself."""
    if len(parts) == 1:
        return parts[0]
    size = sum(part.shape[axis] for part in parts)
    rest = parts[0].shape[1 - axis]
    shape = (size, rest) if axis == 0 else (rest, size)
    origin = f"{parts[0].origin} and {len(parts) - 1} more shards"
    return _Concatenated(shape, parts[0].dtype, origin, tuple(parts), axis)
