"""Norm and effective rank of low-rank changes, from their factors.

For ``D = sum s_i B_i A_i`` put the factors side by side: ``D = B A``. Then ``|D|^2`` is the sum of
the products of the elements of ``B'B`` and ``A A'``, and the singular values of D are the square
roots of the eigenvalues of their product. The two are summed in float64 over blocks of float32, and
are as small as the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..tensors.lazy import LazyTensor, block_rows
from ..tensors.statistics import FactorStatistics
from .patches import LowRank

_ACCURACY = 1e-6


def measure_factors(stages: Sequence[Sequence[LowRank]]) -> FactorStatistics:
    """Measure the change of a tensor by each stage of low-rank patches, and by all together."""
    patches = [patch for stage in stages for patch in stage]
    in_b, in_a = _multiply_factors(patches)
    bounds, end = [], 0
    for stage in stages:
        begin, end = end, end + sum(patch.rank for patch in stage)
        bounds.append(slice(begin, end))
    parts = [(in_b[part, part], in_a[part, part]) for part in bounds]
    squares = tuple(_sum_squares(*part) for part in parts)
    ranks = tuple(_effective_rank(*part) for part in parts)
    if len(parts) == 1:
        return FactorStatistics(squares, squares[0], ranks, ranks[0])
    return FactorStatistics(squares, _sum_squares(in_b, in_a), ranks, _effective_rank(in_b, in_a))


def _multiply_factors(patches: Sequence[LowRank]) -> tuple[torch.Tensor, torch.Tensor]:
    """``B'B`` and ``A A'`` of the factors side by side; scaling goes with B."""
    a = torch.cat([patch.a.read().float() for patch in patches])
    rank = sum(patch.rank for patch in patches)
    in_b = torch.zeros(rank, rank, dtype=torch.float64)
    rows = max(patch.b.rows for patch in patches)
    step = block_rows((rows, rank))
    for start in range(0, rows, step):
        b = torch.cat([_read_rows(p.b, start, step).mul_(p.scaling) for p in patches], dim=1)
        in_b += b.t() @ b
    return in_b, (a @ a.t()).double()


def _read_rows(tensor: LazyTensor, start: int, count: int) -> torch.Tensor:
    """Rows in float32; zeros beyond the last one."""
    stop = min(start + count, tensor.rows)
    if stop - start == count:
        return tensor.read(start, stop).float()
    rows = torch.zeros(count, tensor.shape[1])
    if start < stop:
        rows[: stop - start] = tensor.read(start, stop)
    return rows


def _sum_squares(in_b: torch.Tensor, in_a: torch.Tensor) -> float:
    return max(0.0, float((in_b * in_a).sum()))


def _effective_rank(in_b: torch.Tensor, in_a: torch.Tensor) -> float:
    """The exponential of the entropy of the singular values (Roy and Vetterli, 2007); 0 of zero."""
    values, vectors = torch.linalg.eigh(in_a)
    root = vectors * values.clamp(min=0).sqrt()
    squares = torch.linalg.eigvalsh(root.t() @ in_b @ root).clamp(min=0)
    singular = squares.sqrt()
    # Squares below the accuracy of their sum are rounding, whose roots would count.
    singular = singular[squares > squares.sum() * _ACCURACY]
    if not len(singular):
        return 0.0
    shares = singular / singular.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))
