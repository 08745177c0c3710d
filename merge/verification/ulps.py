"""Distances between floating-point numbers in units in the last place (ulp)."""

from __future__ import annotations

import torch

# Further than any count: a number beside none (NaN), or a finite one beside an infinite one.
BEYOND = torch.iinfo(torch.int64).max

_NAN = 3

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as signed integers of the same width."""
    return tensor.view(_INTEGERS[tensor.dtype.itemsize])


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype with fewer digits: bfloat16 of float16 and bfloat16.

    >>> coarser(torch.float16, torch.bfloat16), coarser(torch.float16, torch.float32)
    (torch.bfloat16, torch.float16)
    """
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How many steps lie between the elements of two tensors of one floating-point dtype (int64).

    0 means the same bits. What differs in bits alone (-0 and 0, two kinds of NaN) is 1 apart.

    >>> distances(torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.0]))
    tensor([0, 1])
    """
    ours, theirs = bits(one).long(), bits(other).long()
    low = torch.iinfo(bits(one).dtype).max
    magnitudes, signs = (ours & low, theirs & low), (ours < 0) == (theirs < 0)
    apart = torch.where(signs, (magnitudes[0] - magnitudes[1]).abs(), magnitudes[0] + magnitudes[1])
    apart = torch.where(apart < 0, BEYOND, apart)  # float64 of opposite signs
    kinds = _kind(one), _kind(other)
    both_nan = (kinds[0] == _NAN) & (kinds[1] == _NAN)
    apart = torch.where(both_nan, torch.zeros_like(apart), apart)
    apart = torch.where((ours != theirs) & (apart == 0), 1, apart)
    return torch.where(kinds[0] != kinds[1], BEYOND, apart)


def _kind(tensor: torch.Tensor) -> torch.Tensor:
    """0 for a finite number, 1 and 2 for infinities, ``_NAN``."""
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 cannot be asked
    infinite = tensor.isinf().to(torch.int8) * torch.where(tensor > 0, 1, 2).to(torch.int8)
    return infinite + _NAN * tensor.isnan().to(torch.int8)
