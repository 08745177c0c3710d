"""How a tensor of a result is made: segments of rows, each from an input, and steps on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..tensors.lazy import LazyTensor, RowReader
from .reference import Operation


@dataclass(frozen=True)
class RowSegment:
    """Rows ``first`` to ``last`` of the result: the same rows of ``start``, with ``steps`` on them.

    ``start`` None stands for rows of zeros.
    """

    first: int
    last: int
    start: LazyTensor | None
    steps: tuple[Operation, ...] = ()

    @property
    def streams(self) -> list[LazyTensor]:
        """The tensors whose rows are read for these rows, ``start`` first."""
        start = [self.start] if self.start is not None else []
        return [*start, *(tensor for step in self.steps for tensor in step.streams)]


@dataclass(frozen=True)
class _ShiftedRows(LazyTensor):
    """The rows of ``base`` as rows ``shape[0] - base.rows`` and on of something longer."""

    base: LazyTensor

    def reader(self) -> RowReader:
        read, offset = self.base.without_digest().reader(), self.rows - self.base.rows

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            read(start - offset, stop - offset, out)

        return fill


@dataclass(frozen=True)
class ExpectedTensor:
    """How one tensor is made. ``uncovered`` says why its arithmetic cannot be checked, if so."""

    segments: tuple[RowSegment, ...]
    columns: tuple[int, ...]
    uncovered: str | None = None

    @property
    def rows(self) -> int:
        """Rows that are accounted for."""
        return self.segments[-1].last if self.segments else 0

    def with_step(self, *steps: Operation) -> ExpectedTensor:
        """The same with further steps on every row."""
        done = tuple(replace(segment, steps=(*segment.steps, *steps)) for segment in self.segments)
        return replace(self, segments=done)

    def with_replacement(self, tensor: LazyTensor) -> ExpectedTensor:
        """The same with ``tensor`` in place of as many rows; rows beyond stay as they are."""
        rest = tuple(
            replace(segment, first=max(segment.first, tensor.rows))
            for segment in self.segments
            if segment.last > tensor.rows
        )
        whole = self.uncovered if rest else None
        return ExpectedTensor((RowSegment(0, tensor.rows, tensor), *rest), tensor.shape[1:], whole)

    def with_rows_after(self, rows: LazyTensor) -> ExpectedTensor:
        """The same with further rows behind it."""
        total = self.rows + rows.rows
        later = _ShiftedRows((total, *rows.shape[1:]), rows.dtype, rows.origin, rows)
        return replace(self, segments=(*self.segments, RowSegment(self.rows, total, later)))

    def take_rows(self, rows: int) -> ExpectedTensor:
        """The same for the first ``rows`` rows."""
        kept = tuple(
            replace(segment, last=min(segment.last, rows))
            for segment in self.segments
            if segment.first < rows
        )
        return replace(self, segments=kept)
