"""A tensor with patches on it: how they are applied to blocks of rows, and the sum is rounded.

Every sum is made in float32 and rounded to the dtype of the result once, at its end; with
``round_each_adapter`` after the patches of each adapter. Patches apply in order: what one does may
depend on what the ones before it made of the tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch

from ..errors import NumberError
from ..messages import tr
from .finite import find_largest
from .lazy import LazyTensor, RowReader, block_rows, get_dtype_name, scratch
from .statistics import BlockObserver, ChangeRecorder

# Changes a float32 block of rows, given the place of its first and last row, in place.
RowPatch = Callable[[torch.Tensor, int, int], object]
# Every block of a tensor as the patches before this one leave it; each lives until the next.
Blocks = Callable[[], Iterator[torch.Tensor]]


class Patch(ABC):
    """One change of a tensor, by blocks of rows."""

    @abstractmethod
    def prepare(self, before: Blocks) -> RowPatch:
        """Read what must be at hand and return what changes a block.

        ``before`` reads the whole tensor once more, for patches that depend on all of it.
        """

    @property
    def tensors(self) -> tuple[LazyTensor, ...]:
        """What it is made of."""
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return tuple(value.without_digest() for value in values if isinstance(value, LazyTensor))

    def transposed(self) -> Patch:
        """The same change of a tensor that is stored transposed."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class PatchedTensor(LazyTensor):
    """``start`` with the patches of each adapter on it, in order, rounded to ``dtype``.

    ``patches_by_adapter`` holds one tuple of patches for each adapter that changes this tensor.
    ``recorder`` collects statistics of the change while the tensor is read, where there is one.
    """

    start: LazyTensor
    patches_by_adapter: tuple[tuple[Patch, ...], ...] = ()
    round_each_adapter: bool = False
    allow_nonfinite: bool = False
    recorder: ChangeRecorder | None = field(default=None, compare=False)

    @property
    def rejects_nonfinite(self) -> bool:
        return self.unchanged_source() is self or self.start.rejects_nonfinite

    def allowing_nonfinite(self) -> LazyTensor:
        return replace(self, allow_nonfinite=True)

    def unchanged_source(self) -> LazyTensor:
        same = not self.patches_by_adapter and self.start.dtype == self.dtype
        return self.start.unchanged_source() if same else self

    def reader(self) -> RowReader:
        if (source := self.unchanged_source()) is not self:
            return source.reader()
        start_rows = self.start.reader()
        stages = self._prepare(start_rows)
        grid = block_rows(self.shape)

        def fill(first: int, last: int, out: torch.Tensor) -> None:
            in_place = self.start.dtype == self.dtype
            if in_place:
                start_rows(first, last, out)
            for begin in range(first, last, grid):
                end = min(begin + grid, last)
                place = out[begin - first : end - first]
                source = place
                if not in_place:
                    source = scratch("source", place.shape, self.start.dtype)
                    start_rows(begin, end, source)
                block = scratch("block", place.shape, torch.float32).copy_(source)
                seen = self.recorder.observe(block, begin) if self.recorder else None
                self._apply(block, stages, begin, end, seen)
                place.copy_(block)
                largest = find_largest(place)
                if seen is not None:
                    seen.finish(block, place, largest)
                if largest is None or not largest < torch.finfo(self.dtype).max:
                    self._require_representable(block, begin)

        def fill_any(first: int, last: int, out: torch.Tensor) -> None:
            # Whole blocks of a grid that the shape fixes: the product of a row must not depend on
            # which other rows were asked for. (A function that calls itself would keep the factors
            # in memory until cycles are collected.)
            begin, end = first - first % grid, min(self.rows, -(-last // grid) * grid)
            if (begin, end) == (first, last):
                fill(first, last, out)
            else:
                whole = scratch("whole", (end - begin, *self.shape[1:]), self.dtype)
                fill(begin, end, whole)
                out.copy_(whole[first - begin : last - begin])

        return fill_any

    def _prepare(self, start_rows: RowReader) -> list[list[RowPatch]]:
        prepared: list[list[RowPatch]] = []
        for stage in self.patches_by_adapter:
            done = list(prepared)
            prepared.append([])
            for patch in stage:
                before = partial(self._iter_blocks, start_rows, done, list(prepared[-1]))
                prepared[-1].append(patch.prepare(before))
        return prepared

    def _iter_blocks(
        self, start_rows: RowReader, stages: list[list[RowPatch]], patches: list[RowPatch]
    ) -> Iterator[torch.Tensor]:
        """Every float32 block after whole ``stages`` and the first ``patches`` of the next one."""
        grid = block_rows(self.shape)
        for begin in range(0, self.rows, grid):
            end = min(begin + grid, self.rows)
            shape = (end - begin, *self.shape[1:])
            source = scratch("source", shape, self.start.dtype)
            start_rows(begin, end, source)
            block = scratch("block", shape, torch.float32).copy_(source)
            self._apply(block, stages, begin, end)
            for patch in patches:
                patch(block, begin, end)
            yield block

    def _apply(
        self,
        block: torch.Tensor,
        stages: list[list[RowPatch]],
        begin: int,
        end: int,
        seen: BlockObserver | None = None,
    ) -> None:
        """Put every patch on the float32 rows ``begin`` to ``end``; let ``seen`` look on."""
        for stage in stages:
            for patch in stage:
                patch(block, begin, end)
            if seen is not None:
                seen.end_stage(block)
            if self.round_each_adapter:
                rounded = block.to(self.dtype)
                if seen is not None:
                    seen.add_rounding(block, rounded)
                block.copy_(rounded)

    def _require_representable(self, block: torch.Tensor, first_row: int) -> None:
        """Raise ``NumberError`` when a value is NaN or Inf, or would overflow.

        It looks at the float32 sums: what is rounded down to the largest number is too large too.
        """
        largest = torch.finfo(self.dtype).max
        low, high = (float(bound) for bound in torch.aminmax(block))
        if -largest <= low and high <= largest:  # false for NaN too
            return
        bad = ~(block.abs() <= largest)
        if self.allow_nonfinite:
            bad &= block.isfinite()
            if not bad.any():
                return
        row = int(bad.nonzero()[0][0])
        values = block[bad]
        value = float(values[values.abs().nan_to_num(torch.inf).argmax()])
        for patch in (patch for stage in self.patches_by_adapter for patch in stage):
            for tensor in patch.tensors:
                if (place := _find_nonfinite_row(tensor)) is not None:
                    raise _nonfinite_error(tensor, place)
        raise NumberError(
            tr("the merged value cannot be written in this dtype"),
            file=self.start.without_digest().path,
            tensor=tr("{tensor}, row {row}", tensor=self.origin, row=first_row + row),
            expected=tr(
                "finite values up to {largest:g} ({dtype})",
                largest=largest,
                dtype=get_dtype_name(self.dtype),
            ),
            found=f"{value:g}",
            remedy=tr(
                "write --dtype bfloat16 or float32 (GGUF: --outtype); if the value "
                "is inf or nan, this file is damaged"
            ),
        )


def _find_nonfinite_row(tensor: LazyTensor) -> int | None:
    """The first row that holds NaN or Inf, read in blocks."""
    step = block_rows(tensor.shape)
    for start in range(0, tensor.rows, step):
        finite = tensor.read(start, min(start + step, tensor.rows)).isfinite()
        if not finite.all():
            return start + int((~finite).nonzero()[0][0])
    return None


def _nonfinite_error(tensor: LazyTensor, row: int) -> NumberError:
    values = tensor.read(row, row + 1).flatten()
    return NumberError(
        tr("what is added to the base holds NaN or Inf"),
        file=tensor.path,
        tensor=tr("{tensor}, row {row}", tensor=tensor.origin, row=row),
        expected=tr("finite values"),
        found=f"{float(values[~values.isfinite()][0]):g}",
        remedy=tr("the training diverged or the file is damaged: save it or fetch it again"),
    )
