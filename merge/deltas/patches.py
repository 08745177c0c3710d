"""The arithmetic of adapters: what a patch does to a block of rows, and how the sum is rounded.

The contract, tested against a float64 reference: every sum is made in float32 and rounded to the
output dtype once, at its end. ``rounding="per_adapter"`` rounds after each adapter instead, as
tools do that merge one adapter into a float16 model and then the next. Two adapters then differ
from the contract in about a quarter of all float16 elements, nearly all by one unit in the last
place, and by more where values cancel.

Patches are applied in order, and one may depend on the result of those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..tensors.lazy import LazyTensor
from ..tensors.patched import Blocks, Patch, RowPatch


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

    def prepare(self, before: Blocks) -> RowPatch:
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
class DoraRowScale(Patch):
    """DoRA of a linear layer: each row is scaled to a norm of its own, ``W = m * W / |W|``.

    ``magnitude`` has the shape (out,).
    """

    magnitude: LazyTensor

    def prepare(self, before: Blocks) -> RowPatch:
        magnitude = self.magnitude

        def scale(block: torch.Tensor, start: int, stop: int) -> object:
            norms = torch.linalg.vector_norm(block, dim=1)
            factors = magnitude.read(start, stop).float().div_(norms)
            return block.mul_(factors.unsqueeze(1))

        return scale

    def transposed(self) -> DoraColumnScale:
        return DoraColumnScale(self.magnitude)


@dataclass(frozen=True)
class DoraColumnScale(Patch):
    """DoRA of embeddings and of transposed layers: each column is scaled to a norm of its own.

    A norm goes over all rows, so the tensor is read once more before its first block is made; the
    squares are summed in float64, block after block. ``magnitude`` has the shape (columns,).
    """

    magnitude: LazyTensor

    def prepare(self, before: Blocks) -> RowPatch:
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

    def prepare(self, before: Blocks) -> RowPatch:
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

    def prepare(self, before: Blocks) -> RowPatch:
        vector, scaling = self.vector, self.scaling

        def add(block: torch.Tensor, start: int, stop: int) -> object:
            return block.add_(vector.read(start, stop).float(), alpha=scaling)

        return add
