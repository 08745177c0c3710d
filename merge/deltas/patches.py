"""The arithmetic: what an adapter does to a block of rows, and how the sum is rounded.

The contract, tested against a float64 reference: every sum is made in float32 and rounded to the
output dtype once, at its end. ``rounding="per_adapter"`` rounds after each adapter instead, as
tools do that merge one adapter into a float16 model and then the next. Two adapters then differ
from the contract in about a quarter of all float16 elements, by one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import NumberError
from ..lazy import LazyTensor, RowReader, block_rows, scratch

# Changes a float32 block of rows, given the place of its first and last row, in place.
RowPatch = Callable[[torch.Tensor, int, int], object]


@dataclass(frozen=True)
class LowRank:
    """``W += scaling * B @ A``, with A of shape (r, in) and B of shape (out, r)."""

    a: LazyTensor
    b: LazyTensor
    scaling: float

    def opened(self) -> RowPatch:
        """Read A whole (it is small); B is read by rows as they are asked for."""
        a = self.a.read().float()
        b, scaling = self.b, self.scaling

        def add(block: torch.Tensor, start: int, stop: int) -> object:
            return block.addmm_(b.read(start, stop).float(), a, alpha=scaling)

        return add


@dataclass(frozen=True)
class Merged(LazyTensor):
    """``start`` with the patches of each adapter on it, in order, rounded to ``dtype``.

    ``stages`` holds one tuple of patches for each adapter that adds to this tensor.
    """

    start: LazyTensor
    stages: tuple[tuple[LowRank, ...], ...] = ()
    round_each_stage: bool = False

    def reader(self) -> RowReader:
        if not self.stages and self.start.dtype == self.dtype:
            return self.start.reader()
        start_rows = self.start.reader()
        stages = [[patch.opened() for patch in stage] for stage in self.stages]
        grid = block_rows(self.shape)

        def fill(first: int, last: int, out: torch.Tensor) -> None:
            # Whole blocks of a grid that the shape fixes: the product of a row must not depend on
            # which other rows were asked for.
            aligned = first - first % grid, min(self.rows, -(-last // grid) * grid)
            if self.stages and aligned != (first, last):
                shape = (aligned[1] - aligned[0], *self.shape[1:])
                whole = scratch("whole", shape, self.dtype)
                fill(*aligned, whole)
                out.copy_(whole[first - aligned[0] : last - aligned[0]])
                return
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
                place.copy_(self._patched(block, stages, begin, end))

        return fill

    def _patched(
        self, block: torch.Tensor, stages: list[list[RowPatch]], begin: int, end: int
    ) -> torch.Tensor:
        """The float32 rows ``begin`` to ``end`` with every patch on them, fit for ``dtype``."""
        for stage in stages:
            for patch in stage:
                patch(block, begin, end)
            if self.round_each_stage:
                block.copy_(block.to(self.dtype))
        self._require_representable(block, begin)
        return block

    def _require_representable(self, block: torch.Tensor, first_row: int) -> None:
        """Raise ``NumberError`` when a value is infinite, no number, or would become so."""
        largest = torch.finfo(self.dtype).max
        low, high = (float(bound) for bound in torch.aminmax(block))
        if -largest <= low and high <= largest:  # false for NaN too
            return
        bad = ~(block.abs() <= largest)
        row = (
            int(bad.flatten(1).any(dim=1).nonzero()[0])
            if block.dim() > 1
            else int(bad.nonzero()[0])
        )
        value = float(block[row][bad[row]].flatten()[0])
        raise NumberError(
            "the merged value cannot be written in this dtype",
            tensor=f"{self.origin}, row {first_row + row}",
            expected=f"finite values up to {largest:g} ({str(self.dtype).removeprefix('torch.')})",
            found=f"{value:g}",
            remedy="write --dtype bfloat16 or float32; if the value is inf or nan, the base or an "
            "adapter is damaged",
        )
