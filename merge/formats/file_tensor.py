"""A tensor that lies in a file, wherever a container put it and however it is strided."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from ..errors import FormatError
from ..messages import tr
from ..storage.input_file import InputFile, view_as_bytes
from ..tensors.lazy import LazyTensor, RowReader
from .crc import CrcCheck

_ADDRESSABLE = 1 << 62


@dataclass(frozen=True)
class FileTensor(LazyTensor):
    """Elements in ``file`` from byte ``offset`` on, ``strides`` apart (counted in elements)."""

    file: InputFile
    offset: int
    strides: tuple[int, ...]
    checksum: CrcCheck | None = field(default=None, compare=False, repr=False)

    @property
    def path(self) -> Path:
        return self.file.path

    def reader(self) -> RowReader:
        if self.is_contiguous():
            return self._read_contiguous_rows
        if len(self.shape) > 1 and self.strides[0] < self.strides[-1]:
            return self._read_rows_by_column
        return self._read_strided_rows

    def transposed(self) -> FileTensor:
        """The same elements with rows and columns exchanged; they are read where they are."""
        origin = f"{self.origin}, transposed"
        shape, strides = self.shape[::-1], self.strides[::-1]
        return FileTensor(shape, self.dtype, origin, self.file, self.offset, strides)

    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other, as they must be written."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def _read_contiguous_rows(self, start: int, stop: int, out: torch.Tensor) -> None:
        if out.numel():
            data, place = view_as_bytes(out), start * self.row_bytes
            self.file.read_into(data, self.offset + place, self.offset + self.nbytes)
            if self.checksum is not None:
                self.checksum.update(place, data)

    def _read_strided_rows(self, start: int, stop: int, out: torch.Tensor) -> None:
        if not out.numel():
            return
        span = 1 + sum((n - 1) * s for n, s in zip(out.shape, self.strides, strict=True))
        flat = torch.empty(span, dtype=self.dtype)
        first = self.offset + start * self.strides[0] * self.dtype.itemsize
        self.file.read_into(view_as_bytes(flat), first)
        out.copy_(torch.as_strided(flat, out.shape, self.strides))

    def _read_rows_by_column(self, start: int, stop: int, out: torch.Tensor) -> None:
        for column in range(self.shape[1]):
            FileTensor(
                (self.rows, *self.shape[2:]),
                self.dtype,
                self.origin,
                self.file,
                self.offset + column * self.strides[1] * self.dtype.itemsize,
                (self.strides[0], *self.strides[2:]),
            )._read_strided_rows(start, stop, out[:, column])

    def check_inside(self, offset: int, nbytes: int) -> None:
        """Raise ``FormatError`` unless the tensor lies within the given part of its file."""
        if any(n < 0 for n in (*self.strides, *self.shape)):
            raise self._outside_error(tr("a shape or stride below zero"))
        if prod(filter(None, self.shape)) * self.dtype.itemsize >= _ADDRESSABLE:
            raise self._outside_error(tr("a shape of more elements than a computer can count"))
        if 0 in self.shape:
            return
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        end = self.offset + (last + 1) * self.dtype.itemsize
        if self.offset < offset or end > offset + nbytes:
            raise self._outside_error(
                tr("bytes {offset:,} to {end:,}", offset=self.offset, end=end)
            )

    def _outside_error(self, found: str) -> FormatError:
        return FormatError(
            tr("the tensor reaches outside the data that the file holds for it"),
            file=self.file.path,
            tensor=self.origin,
            found=found,
            remedy=tr("the file is damaged: fetch or copy it again"),
        )


def get_contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a tensor laid out row by row.

    >>> get_contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
