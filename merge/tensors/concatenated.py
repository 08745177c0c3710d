"""A tensor made of several: parts in different files, or matrices put one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from threading import Lock

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
        if self.axis == 0:
            return self._make_row_filler(ranges)
        readers = [part.reader() for part in self.parts]

        def fill_columns(start: int, stop: int, out: torch.Tensor) -> None:
            step = block_rows(self.shape)
            for begin in range(start, stop, step):
                end = min(begin + step, stop)
                for read, (first, last) in zip(readers, ranges, strict=True):
                    part = scratch("columns", (end - begin, last - first), self.dtype)
                    read(begin, end, part)
                    out[begin - start : end - start, first:last].copy_(part)

        return fill_columns

    def _make_row_filler(self, ranges: Sequence[tuple[int, int]]) -> RowReader:
        """Rows are asked for in order, so few parts are open at a time: their readers may hold much
        (the factors of a LoRA, say).
        """
        readers = _OpenReaders(self.parts)

        def fill_rows(start: int, stop: int, out: torch.Tensor) -> None:
            for number, (first, last) in enumerate(ranges):
                low, high = max(first, start), min(last, stop)
                if low < high:
                    read = readers.get(number, is_end=high == last)
                    read(low - first, high - first, out[low - start : high - start])

        return fill_rows


class _OpenReaders:
    """The readers of parts, each opened when rows of it are first asked for."""

    def __init__(self, parts: Sequence[LazyTensor]) -> None:
        self._parts = parts
        self._open: dict[int, RowReader] = {}
        self._lock = Lock()

    def get(self, number: int, is_end: bool) -> RowReader:
        """The reader of a part; with its last rows it is let go."""
        with self._lock:
            if number not in self._open:
                self._open[number] = self._parts[number].reader()
            return self._open.pop(number) if is_end else self._open[number]


def concatenate(parts: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Join matrices of one dtype along ``axis``; a single part is itself."""
    if len(parts) == 1:
        return parts[0]
    size = sum(part.shape[axis] for part in parts)
    rest = parts[0].shape[1 - axis]
    shape = (size, rest) if axis == 0 else (rest, size)
    origin = f"{parts[0].origin} and {len(parts) - 1} more"
    return _Concatenated(shape, parts[0].dtype, origin, tuple(parts), axis)
