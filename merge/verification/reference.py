"""What a tensor of the result must be, in float64, and how far it may be off by rounding.

The contract that the merge states: sums in float32, one rounding to the output dtype at the end
(``per_adapter``: one after each adapter; a dense delta is rounded before the adapters). Each step
below computes exactly what it adds and by how much a float32 sum may miss it, so the tolerance of
an element follows from its own numbers and is not a constant that somebody chose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from ..formats.blocks import BLOCK
from ..tensors.lazy import LazyTensor, block_rows
from .adapters import Product

# Half a unit in the last place of a float32 in [1, 2).
_U = 2.0**-24
# An inner product of the probe misses the sum of its errors by more than this many times their
# root of squares in one of 10^17 cases: Hoeffding's bound for random signs, 2 exp(-81 / 2).
SIGMAS = 9.0


@dataclass
class ExpectedRows:
    """A piece of rows: ``values`` (float64), how far each may be off, and the probe of both sides.

    ``tolerance`` is in float32, which is exact enough for a bound; ``relative`` comes on top of it,
    as a share of the values as they are. ``probe`` is what ``values @ probe_vectors.T`` must be,
    made without ``values``; ``added`` is the part of it that low-rank products gave.
    """

    values: torch.Tensor
    tolerance: torch.Tensor
    probe: torch.Tensor
    added: torch.Tensor
    relative: float = 0.0

    @classmethod
    def of(cls, start: torch.Tensor, probe_vectors: torch.Tensor) -> ExpectedRows:
        """What is carried over: no tolerance yet."""
        values = to_float64(start)
        none = torch.zeros(values.shape, dtype=torch.float32)
        probe = project(values, probe_vectors)
        return cls(values, none, probe, torch.zeros_like(probe))

    def resolve_relative(self) -> torch.Tensor:
        """Let ``relative`` become part of ``tolerance``; return the magnitudes of the values."""
        magnitudes = self.values.float().abs_()
        if self.relative:
            self.tolerance.add_(magnitudes, alpha=self.relative)
            self.relative = 0.0
        return magnitudes

    def allow_rounding(self, magnitudes: torch.Tensor, dtype: torch.dtype) -> None:
        """Let ``tolerance`` include a rounding to ``dtype``; ``magnitudes`` are used up."""
        self.tolerance += compute_half_ulp(magnitudes.add_(self.tolerance), dtype)


def project(rows: torch.Tensor, probe_vectors: torch.Tensor) -> torch.Tensor:
    """The products of (rows, columns) and (vectors, columns), as (rows, vectors).

    The other way around BLAS takes half as long again.
    """
    return torch.mm(probe_vectors, rows.t()).t()


def to_float64(rows: torch.Tensor) -> torch.Tensor:
    """Rows as a float64 matrix. By way of float32, which torch does five times as fast."""
    wide = rows.float() if rows.dtype.itemsize < 4 else rows
    return wide.double().reshape(len(rows), -1)


# Changes a piece; given the row of the tensor where it begins, and the rows of its streams.
Change = Callable[[ExpectedRows, int, Sequence[torch.Tensor]], object]


class Operation(ABC):
    """Something that is done to a tensor."""

    streams: tuple[LazyTensor, ...] = ()
    """Tensors of the same rows that are read along."""

    @abstractmethod
    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        """Read what must be at hand; ``probe_vectors`` (vectors, columns) are the probe's."""


@dataclass(frozen=True)
class AddProduct(Operation):
    """``W += scaling * B A`` on the rows that the product has."""

    product: Product

    def prepare(self, probe_vectors: torch.Tensor) -> PreparedProduct:
        return PreparedProduct(self.product, probe_vectors)


class PreparedProduct:
    """A product with its factor of columns at hand, in float64.

    ``right`` is (rank, columns) and ``reach`` the norms of its columns. ``seen`` is what the probe
    makes of it, (rank, vectors). ``loss`` is what float32 may lose in a sum of so many terms, as a
    share of their magnitudes.
    """

    def __init__(self, product: Product, probe_vectors: torch.Tensor) -> None:
        self._product, self.scaling, self.rows = product, product.scaling, product.rows
        self._left: torch.Tensor | None = None
        if product.is_transposed:
            self._left = product.a.read().t()
            self.right = product.b.read().double().t().contiguous()
        else:
            self.right = product.a.read().double()
        self.rank = self.right.shape[0]
        self.reach = self.right.norm(dim=0).float()
        self.seen = linear(self.right, probe_vectors)
        self.loss = (self.rank + 3) * _U

    def read_factor(self, first: int, last: int) -> torch.Tensor:
        """The factor of rows ``first`` to ``last``, (rows, rank) in float64."""
        rows = self._product.b.read(first, last) if self._left is None else self._left[first:last]
        return rows.double()

    def probe(self, factor: torch.Tensor) -> torch.Tensor:
        """What the product adds to the random sums of rows, (rows, vectors)."""
        return torch.mm(factor, self.seen).mul_(self.scaling)

    def bound_rows(self, factor: torch.Tensor) -> torch.Tensor:
        """By how much rows may be off, for each unit of ``reach`` (float32)."""
        norms: torch.Tensor = factor.norm(dim=1)
        return norms.mul_(self.loss * abs(self.scaling)).float()

    def __call__(self, piece: ExpectedRows, first: int, _: Sequence[torch.Tensor]) -> None:
        """Add it to the rows that it has, of those that begin at ``first``."""
        last = min(first + len(piece.values), self.rows)
        if last <= first:
            return
        factor = self.read_factor(first, last)
        if piece.relative:
            piece.resolve_relative()
        piece.values[: last - first].addmm_(factor, self.right, alpha=self.scaling)
        piece.tolerance[: last - first].addr_(self.bound_rows(factor), self.reach)
        # The sum may be made by adding each of the terms to W, as for a single row.
        piece.relative = self.loss
        probe = self.probe(factor)
        piece.probe[: last - first] += probe
        piece.added[: last - first] += probe


@dataclass(frozen=True)
class AddDense(Operation):
    """``W += sign * D``."""

    dense: LazyTensor
    sign: int

    @property
    def streams(self) -> tuple[LazyTensor, ...]:  # type: ignore[override]
        return (self.dense,)

    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        def change(piece: ExpectedRows, _: int, streams: Sequence[torch.Tensor]) -> None:
            rows = to_float64(streams[0])
            piece.resolve_relative()
            piece.values.add_(rows, alpha=self.sign)
            piece.relative = 2 * _U
            piece.probe.add_(project(rows, probe_vectors), alpha=self.sign)

        return change


@dataclass(frozen=True)
class AddMean(Operation):
    """``W += sign * mean(base)``: the mean of the base's rows, kept in float32, on every row."""

    base: LazyTensor
    sign: int

    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        read, step = self.base.without_digest().reader(), block_rows(self.base.shape)
        mean = torch.zeros(self.base.shape[1:], dtype=torch.float64)
        for first in range(0, self.base.rows, step):
            rows = torch.empty(
                (min(step, self.base.rows - first), *self.base.shape[1:]), dtype=self.base.dtype
            )
            read(first, first + len(rows), rows)
            mean += to_float64(rows).sum(dim=0)
        mean /= self.base.rows

        def change(piece: ExpectedRows, _: int, __: Sequence[torch.Tensor]) -> None:
            piece.resolve_relative()
            piece.values.add_(mean, alpha=self.sign)
            piece.tolerance.add_(mean.abs().float(), alpha=2 * _U)
            piece.relative = 2 * _U
            piece.probe.add_(linear(mean, probe_vectors), alpha=self.sign)

        return change


@dataclass(frozen=True)
class AddVector(Operation):
    """``bias += scaling * vector``."""

    vector: LazyTensor
    scaling: float

    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        def change(piece: ExpectedRows, first: int, _: Sequence[torch.Tensor]) -> None:
            rows = self.vector.read(first, first + len(piece.values)).double().unsqueeze(1)
            rows *= self.scaling
            piece.resolve_relative()
            piece.values += rows
            piece.tolerance.add_(piece.values.abs() + rows.abs(), alpha=3 * _U)
            piece.probe += linear(rows, probe_vectors)

        return change


@dataclass(frozen=True)
class ScaleRows(Operation):
    """DoRA: each row is scaled to the norm of ``magnitude``."""

    magnitude: LazyTensor

    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        def change(piece: ExpectedRows, first: int, _: Sequence[torch.Tensor]) -> None:
            piece.resolve_relative()
            count, columns = piece.values.shape
            norms = piece.values.norm(dim=1)
            factors = self.magnitude.read(first, first + count).double() / norms
            relative = piece.tolerance.norm(dim=1) / norms + (columns / 8 + 20) * _U
            piece.values *= factors.unsqueeze(1)
            piece.tolerance *= factors.abs().unsqueeze(1)
            piece.tolerance += piece.values.abs() * relative.unsqueeze(1)
            piece.probe *= factors.unsqueeze(1)
            piece.added *= factors.unsqueeze(1)

        return change


@dataclass(frozen=True)
class ReplaceRows(Operation):
    """Trained tokens: rows ``indices`` become ``rows``."""

    indices: tuple[int, ...]
    rows: LazyTensor

    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        def change(piece: ExpectedRows, first: int, _: Sequence[torch.Tensor]) -> None:
            for number, index in enumerate(self.indices):
                if first <= index < first + len(piece.values):
                    piece.resolve_relative()
                    row = self.rows.read(number, number + 1)[0].double()
                    piece.values[index - first] = row
                    piece.tolerance[index - first] = 0
                    piece.probe[index - first] = probe_vectors @ row
                    piece.added[index - first] = 0

        return change


@dataclass(frozen=True)
class Round(Operation):
    """A rounding to ``dtype`` before the last one, which belongs to the comparison."""

    dtype: torch.dtype

    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        def change(piece: ExpectedRows, _: int, __: Sequence[torch.Tensor]) -> None:
            piece.allow_rounding(piece.resolve_relative(), self.dtype)

        return change


@dataclass(frozen=True)
class Quantize(Operation):
    """Q8_0: blocks of 32 elements, each a whole multiple of a 127th of the largest of them.

    That scale is kept as a float16; see ``compute_block_error``.
    """

    def prepare(self, probe_vectors: torch.Tensor) -> Change:
        def change(piece: ExpectedRows, _: int, __: Sequence[torch.Tensor]) -> None:
            piece.tolerance += compute_block_error(piece.resolve_relative() + piece.tolerance)

        return change


def compute_block_error(reach: torch.Tensor) -> torch.Tensor:
    """By how much Q8_0 may move numbers of these magnitudes (float32, (rows, columns)).

    Half a step of the number's own block of 32, and the rounding of its scale to float16. Where a
    magnitude is infinite, so is the error of its whole block.
    """
    steps = reach.view(len(reach), -1, BLOCK).amax(dim=2, keepdim=True) / 127
    off = steps.expand(-1, -1, BLOCK).reshape(reach.shape) * 0.501
    return off + (reach + off) * 2.0**-11 + 127 * 2.0**-25


def compute_half_ulp(magnitudes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """By how much rounding to ``dtype`` may move numbers of these magnitudes (float32; used up).

    >>> compute_half_ulp(torch.tensor([1.0, 1.9, 2.0]), torch.float16) * 2**11
    tensor([1., 1., 2.])
    """
    info = torch.finfo(dtype)
    bits = magnitudes.view(torch.int32)
    bits &= 0x7F80_0000
    return magnitudes.clamp_(min=info.tiny).mul_(info.eps / 2)
