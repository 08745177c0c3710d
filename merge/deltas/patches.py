"""The arithmetic: what an adapter does to a block of rows, and how the sum is rounded.

The contract, tested against a float64 reference: every sum is made in float32 and rounded to the
output dtype once, at its end. ``rounding="per_adapter"`` rounds after each adapter instead, as
tools do that merge one adapter into a float16 model and then the next. Two adapters then differ
from the contract in about a quarter of all float16 elements, by one unit in the last place.

Patches apply in order: what one does may depend on what the ones before it made of the tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import torch

from ..errors import NumberError
from ..lazy import LazyTensor, RowReader, block_rows, scratch

# Changes a float32 block of rows, given the place of its first and last row, in place.
RowPatch = Callable[[torch.Tensor, int, int], object]
# Every block of a tensor as the patches before this one leave it; each lives until the next.
Blocks = Callable[[], Iterator[torch.Tensor]]


class Patch(ABC):
    """One change of a tensor, by blocks of rows."""

    @abstractmethod
    def opened(self, before: Blocks) -> RowPatch:
        """Read what must be at hand and return what changes a block.

        ``before`` reads the whole tensor once more, for patches that depend on all of it.
        """

    @property
    def tensors(self) -> tuple[LazyTensor, ...]:
        """What it is made of."""
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return tuple(value.unordered() for value in values if isinstance(value, LazyTensor))

    def transposed(self) -> Patch:
        """The same change of a tensor that is stored transposed."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class LowRank(Patch):
    """``W += scaling * B @ A``, with A of shape (r, in) and B of shape (out, r).

    Rows beyond those of B stay as they are.
    """

    a: LazyTensor
    b: LazyTensor
    scaling: float

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return self.a.rows

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the product."""
        return self.b.rows, self.a.shape[1]

    def opened(self, before: Blocks) -> RowPatch:
        """Read A whole (it is small); B is read by rows as they are asked for."""
        a = self.a.read().float()
        b, scaling = self.b, self.scaling

        def add(block: torch.Tensor, start: int, stop: int) -> object:
            end = min(stop, b.rows)
            if start >= end:
                return block
            factor = b.read(start, end).float()
            return block[: end - start].addmm_(factor, a, alpha=scaling)

        return add

    def transposed(self) -> LowRank:
        return LowRank(self.b.transposed(), self.a.transposed(), self.scaling)


@dataclass(frozen=True)
class RowMagnitude(Patch):
    """DoRA of a linear layer: each row is scaled to a norm of its own, ``W = m * W / |W|``.

    ``magnitude`` has the shape (out,).
    """

    magnitude: LazyTensor

    def opened(self, before: Blocks) -> RowPatch:
        magnitude = self.magnitude

        def scale(block: torch.Tensor, start: int, stop: int) -> object:
            norms = torch.linalg.vector_norm(block, dim=1)
            factors = magnitude.read(start, stop).float().div_(norms)
            return block.mul_(factors.unsqueeze(1))

        return scale

    def transposed(self) -> ColumnMagnitude:
        return ColumnMagnitude(self.magnitude)


@dataclass(frozen=True)
class ColumnMagnitude(Patch):
    """DoRA of embeddings and of transposed layers: each column is scaled to a norm of its own.

    A norm goes over all rows, so the tensor is read once more before its first block is made; the
    squares are summed in float64, block after block. ``magnitude`` has the shape (columns,).
    """

    magnitude: LazyTensor

    def opened(self, before: Blocks) -> RowPatch:
        squares = torch.zeros(self.magnitude.shape, dtype=torch.float64)
        for block in before():
            squares += torch.linalg.vector_norm(block, dim=0, dtype=torch.float64).square_()
        factors = (self.magnitude.read().double() / squares.sqrt()).float()

        def scale(block: torch.Tensor, start: int, stop: int) -> object:
            return block.mul_(factors)

        return scale


@dataclass(frozen=True)
class ReplacedRows(Patch):
    """Trainable tokens: ``W[indices[i]] = rows[i]``. Indices are different from each other."""

    indices: tuple[int, ...]
    replacements: LazyTensor

    def opened(self, before: Blocks) -> RowPatch:
        places = sorted((index, row) for row, index in enumerate(self.indices))
        replacements = self.replacements

        def replace(block: torch.Tensor, start: int, stop: int) -> object:
            for index, row in places:
                if start <= index < stop:
                    block[index - start] = replacements.read(row, row + 1)[0]
            return block

        return replace


@dataclass(frozen=True)
class AddedVector(Patch):
    """``bias += scaling * vector``, of the same shape (out,)."""

    vector: LazyTensor
    scaling: float

    def opened(self, before: Blocks) -> RowPatch:
        vector, scaling = self.vector, self.scaling

        def add(block: torch.Tensor, start: int, stop: int) -> object:
            return block.add_(vector.read(start, stop).float(), alpha=scaling)

        return add


@dataclass(frozen=True)
class Merged(LazyTensor):
    """``start`` with the patches of each adapter on it, in order, rounded to ``dtype``.

    ``stages`` holds one tuple of patches for each adapter that changes this tensor.
    """

    start: LazyTensor
    stages: tuple[tuple[Patch, ...], ...] = ()
    round_each_stage: bool = False
    allow_nonfinite: bool = False

    @property
    def is_checked(self) -> bool:
        return self.passed_on() is self or self.start.is_checked

    def allowing_nonfinite(self) -> LazyTensor:
        return replace(self, allow_nonfinite=True)

    def passed_on(self) -> LazyTensor:
        same = not self.stages and self.start.dtype == self.dtype
        return self.start.passed_on() if same else self

    def reader(self) -> RowReader:
        if (source := self.passed_on()) is not self:
            return source.reader()
        start_rows = self.start.reader()
        stages = self._opened(start_rows)
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
                self._apply(block, stages, begin, end)
                self._require_representable(block, begin)
                place.copy_(block)

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

    def _opened(self, start_rows: RowReader) -> list[list[RowPatch]]:
        opened: list[list[RowPatch]] = []
        for stage in self.stages:
            done = list(opened)
            opened.append([])
            for patch in stage:
                before = partial(self._blocks, start_rows, done, list(opened[-1]))
                opened[-1].append(patch.opened(before))
        return opened

    def _blocks(
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
        self, block: torch.Tensor, stages: list[list[RowPatch]], begin: int, end: int
    ) -> None:
        """Put every patch on the float32 rows ``begin`` to ``end``."""
        for stage in stages:
            for patch in stage:
                patch(block, begin, end)
            if self.round_each_stage:
                block.copy_(block.to(self.dtype))

    def _require_representable(self, block: torch.Tensor, first_row: int) -> None:
        """Raise ``NumberError`` when a value is infinite, no number, or would become so."""
        largest = torch.finfo(self.dtype).max
        low, high = (float(bound) for bound in torch.aminmax(block))
        if -largest <= low and high <= largest:  # false for NaN too
            return
        bad = ~(block.abs() <= largest)
        if self.allow_nonfinite:
            bad &= block.isfinite()
            if not bad.any():
                return
        row = (
            int(bad.flatten(1).any(dim=1).nonzero()[0])
            if block.dim() > 1
            else int(bad.nonzero()[0])
        )
        values = block[bad]
        value = float(values[values.abs().nan_to_num(torch.inf).argmax()])
        for patch in (patch for stage in self.stages for patch in stage):
            for tensor in patch.tensors:
                if (place := _row_without_number(tensor)) is not None:
                    raise _no_number(tensor, place)
        raise NumberError(
            "the merged value cannot be written in this dtype",
            file=self.start.unordered().path,
            tensor=f"{self.origin}, row {first_row + row}",
            expected=f"finite values up to {largest:g} ({str(self.dtype).removeprefix('torch.')})",
            found=f"{value:g}",
            remedy="write --dtype bfloat16 or float32 (GGUF: --outtype); if the value is inf or "
            "nan, this file is damaged",
        )


def _row_without_number(tensor: LazyTensor) -> int | None:
    """The first row that holds an infinite value or none, read in blocks."""
    step = block_rows(tensor.shape)
    for start in range(0, tensor.rows, step):
        finite = tensor.read(start, min(start + step, tensor.rows)).isfinite()
        if not finite.all():
            return start + int((~finite).nonzero()[0][0])
    return None


def _no_number(tensor: LazyTensor, row: int) -> NumberError:
    values = tensor.read(row, row + 1).flatten()
    return NumberError(
        "what is added to the base holds a value that is no finite number",
        file=tensor.path,
        tensor=f"{tensor.origin}, row {row}",
        expected="finite values",
        found=f"{float(values[~values.isfinite()][0]):g}",
        remedy="the training diverged or the file is damaged: save it or fetch it again",
    )
