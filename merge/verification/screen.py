"""A quick look at rows to which products are added: where all is right, it shows that.

Most elements of a right result are nearer to their float64 value than half a unit in the last
place. The screen computes by how much, in float64 as the check in ``elementwise`` does, but
converts, compares and bounds in float32, and has no tolerance for each element. It never finds a
fault: the few elements that it is not sure of are judged by themselves, and where one of them is
not right, or a random sum may be off, the rows are left to that check. So the findings are equal.

For a result F, a base W, and what the adapters add, P = sum of b_k a_k over the ranks of all
products, it asks whether ``|d| < h`` for ``d = F - W - P``, where h is half a unit in the last
place at F, counted below F where F is a power of two. If so, F is what W + P rounds to.

**The error of d.** F - W is rounded to float32, so it is off by ``u |F - W|``, u = 2**-24. Products
are added to it in float64, which for up to 2**20 ranks is off by less than ``u / 100 (|F - W| +
beta)``, where beta is the norm of b times the largest norm of a column's a (Cauchy-Schwarz).
The difference d' is rounded to float32. Since F - W = d + P and |P| <= beta::

    |d' - d| <= 1.01 u (|d| + beta) + 0.01 u beta + u |d'|
    |d| < h  if  |d'| < h (1 - 4 u) - 1.03 u beta

The right side is computed in float32, for which it is made smaller: ``h (1 - 8 u) - 1.05 u beta``.
Numbers that vanish in float32 count ``_FLOAT32_TINY``.

**The error of random sums.** They are sums of F - W, in float64, and off by ``u sum |F - W|`` at
most, as its elements are. Where ``|d| < h``, ``|F - W| < h + |b| |a|``; of others |d| is known. A
sum must keep its limit even with that error. The limit is a share of the root of squares of the
tolerances, which are at least h where ``|d| < h``, and taken as 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from ..tensors.lazy import scratch
from .exactness import Exactness
from .expected_tensor import RowSegment
from .reference import SIGMAS, Change, PreparedProduct, compute_half_ulp, project
from .ulps import round_to_nearest

_U = 2.0**-24
# Below it float32 has fewer digits, or none.
_FLOAT32_TINY = 2.0**-126
# Squares of smaller numbers may vanish in float32.
_LEAST_SQUARED = 2.0**-63
# What the derivation above is made for: more would be left to float64.
_MOST_RANKS = 1 << 20
_MOST_COLUMNS = 1 << 18
# Where more elements than this share are unsure, whole rows take less time.
_FEW = 1 / 16
# Elements between the rows of a matrix that products are added to. Rows of a power of two alone
# would meet in a few lines of the processor's cache, and products take three times as long.
_PADDING = 8

# Elements that are looked at together: their copies stay in a core's cache.
_PIECE_ELEMENTS = 1 << 17

Places = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Screened:
    """Rows that are right: how near their elements are, and sums for the share that was added."""

    exactness: Exactness
    added: float
    squares: float


@dataclass(frozen=True)
class _Look:
    """What the screen sees of some rows.

    ``unsure`` are the rows and columns of elements, and how far these are off (float64).
    ``norms`` are those of the products' rows, ``sums`` the random sums of F - W, (rows, vectors),
    and ``tolerance`` the norm of h over the elements of a row that are right.
    """

    unsure: Sequence[torch.Tensor]
    norms: torch.Tensor
    sums: torch.Tensor
    tolerance: torch.Tensor


class Screen:
    """The screen of a segment's rows, to which only products are added."""

    def __init__(
        self,
        products: Sequence[PreparedProduct],
        first: int,
        dtype: torch.dtype,
        probe_vectors: torch.Tensor,
    ) -> None:
        self._products, self._first, self._dtype = products, first, dtype
        self._half_ulp = torch.finfo(dtype).eps / 2
        self._probe_vectors = probe_vectors
        self._right = torch.cat([product.right * -product.scaling for product in products])
        norms = self._right.norm(dim=0)
        self._reach, self._total_reach = float(norms.max()), float(norms.sum())

    @classmethod
    def of(
        cls,
        segment: RowSegment,
        changes: Sequence[Change],
        dtype: torch.dtype,
        probe_vectors: torch.Tensor,
    ) -> Screen | None:
        """The screen of a segment; None where its arithmetic is another, or float32 too coarse."""
        products = [change for change in changes if isinstance(change, PreparedProduct)]
        start = segment.start.dtype if segment.start is not None else None
        narrow = (torch.float16, torch.bfloat16)
        are_fit = dtype in narrow and start in (*narrow, torch.float32)
        is_sum = bool(products) and len(products) == len(changes)
        ranks, columns = sum(product.rank for product in products), probe_vectors.shape[1]
        if not are_fit or not is_sum or ranks > _MOST_RANKS or columns > _MOST_COLUMNS:
            return None
        return cls(products, segment.first, dtype, probe_vectors)

    def find_right(self, first: int, found: torch.Tensor, start: torch.Tensor) -> Screened | None:
        """Look at rows from ``first`` of the segment on; None where not all are surely right."""
        begin = self._first + first
        end = begin + len(found)
        if any(end > product.rows for product in self._products):
            return None
        found, start = (side.reshape(len(side), -1) for side in (found, start))
        factors = [product.read_factor(begin, end) for product in self._products]
        look = self._look(found, start, torch.cat(factors, dim=1))
        if look is None:
            return None
        rows, columns, gaps = look.unsure
        unsure = rows, columns
        ours, base = found[unsure].double(), start[unsure].double()
        gaps += ours - base - (ours - base).float()
        if not self._are_right(ours, gaps, factors, unsure):
            return None
        added = sum(map(PreparedProduct.probe, self._products, factors), torch.zeros(()))
        if not self._are_sums_right(look, look.sums - added, found.shape[1]):
            return None
        apart = Exactness.of(found[unsure], round_to_nearest(ours - gaps, self._dtype))
        identical = found.numel() - len(ours) + apart.identical
        exactness = Exactness(found.numel(), identical, apart.max_ulp)
        return Screened(exactness, float((look.sums * added).sum()), float(added.square().sum()))

    def _look(self, found: torch.Tensor, start: torch.Tensor, left: torch.Tensor) -> _Look | None:
        """Go over the elements in pieces that stay in the cache; None where many are unsure."""
        step, norms = max(1, _PIECE_ELEMENTS // found.shape[1]), left.norm(dim=1)
        margins = (norms * (-1.05 * _U * self._reach) - 8 * _FLOAT32_TINY).float().unsqueeze(1)
        sums = torch.empty(len(found), len(self._probe_vectors), dtype=torch.float64)
        half_units = torch.empty(len(found))
        rows, columns, gaps = [], [], []
        for first in range(0, len(found), step):
            part = slice(first, first + step)
            narrow = _take("narrow", found[part]).copy_(found[part])
            units = self._find_units(narrow)
            off = self._subtract(narrow, start[part])
            sums[part] = project(off, self._probe_vectors)
            off.addmm_(left[part], self._right)
            places = self._find_unsure(narrow.copy_(off).abs_(), units, margins[part])
            if len(places) > _FEW * narrow.numel():
                return None
            own, column = np.divmod(places, found.shape[1])
            gaps.append(off.numpy()[own, column])
            units.numpy()[own, column] = 0
            half_units[part] = torch.linalg.vector_norm(units, dim=1)
            rows.append(own + first)
            columns.append(column)
        joined = [torch.from_numpy(np.concatenate(parts)) for parts in (rows, columns, gaps)]
        return _Look(joined, norms, sums, half_units.double().mul_(self._half_ulp))

    def _find_units(self, found: torch.Tensor) -> torch.Tensor:
        """The power of two at each element, or just below it, that says how long a unit is."""
        units = torch.mul(found, 1 - 2.0**-23, out=_take("units", found))
        bits = units.view(torch.int32)
        bits &= 0x7F80_0000
        return units.clamp_(min=torch.finfo(self._dtype).tiny)

    def _subtract(self, found: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """``F - W`` in float64, rounded to float32 before; ``found``, in float32, is used up."""
        found -= _take("base", found).copy_(start)
        rows, columns = found.shape
        off = scratch("off", (rows, columns + _PADDING), torch.float64)[:, :columns]
        return off.copy_(found)

    def _find_unsure(
        self, off: torch.Tensor, units: torch.Tensor, margins: torch.Tensor
    ) -> NDArray[np.intp]:
        """Elements, counted along the rows, that may be off by half a unit or more."""
        limits = _take("base", off)
        torch.add(margins, units, alpha=self._half_ulp * (1 - 8 * _U), out=limits)
        with np.errstate(invalid="ignore"):
            mask = off.numpy() < limits.numpy()
        return np.flatnonzero(np.logical_not(mask, out=mask))  # NaN is among them

    def _are_right(
        self,
        found: torch.Tensor,
        gaps: torch.Tensor,
        factors: Sequence[torch.Tensor],
        places: Places,
    ) -> bool:
        """Whether elements are off by no more than their tolerances, of which a part will do."""
        rows, columns = places
        magnitudes = (found - gaps).float().abs_()
        tolerance = magnitudes * self._products[-1].loss
        for product, factor in zip(self._products, factors, strict=True):
            tolerance += product.bound_rows(factor)[rows] * product.reach[columns]
        tolerance += compute_half_ulp(magnitudes + tolerance, self._dtype)
        return bool((gaps.abs() <= tolerance).all())

    def _are_sums_right(self, look: _Look, off: torch.Tensor, columns: int) -> bool:
        """Whether random sums, ``off`` by so much, are within their limits."""
        lost = 2 * columns * _U
        reach = look.tolerance * ((1 + lost) * sqrt(columns)) + look.norms * self._total_reach
        reach += float(look.unsure[2].abs().sum()) + columns * _LEAST_SQUARED
        limits = look.tolerance * (SIGMAS * (1 - lost)) - reach * (1.05 * _U)
        return bool((off.abs() < limits.unsqueeze(1)).all())


def _take(purpose: str, like: torch.Tensor) -> torch.Tensor:
    """A float32 matrix of the shape of ``like``, in memory of this thread's own."""
    return scratch(purpose, like.shape, torch.float32)
