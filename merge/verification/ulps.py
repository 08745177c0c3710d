"""Distances between floating-point numbers in units in the last place (ulp)."""

from __future__ import annotations

import torch

from ..messages import tr

# Further than any count: a number beside none (NaN), or a finite one beside an infinite one.
INCOMPARABLE = torch.iinfo(torch.int64).max

_NAN = 3
# The last bits of a float32 that are all zero half-way between two float16, or narrower floats.
_TIE_BITS = 0xFFF

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def view_as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as signed integers of the same width."""
    return tensor.view(_INTEGERS[tensor.dtype.itemsize])


def choose_coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype with fewer digits: bfloat16 of float16 and bfloat16.

    >>> choose_coarser(torch.float16, torch.bfloat16), choose_coarser(torch.float16, torch.float32)
    (torch.bfloat16, torch.float16)
    """
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def round_to_nearest(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 values once to a floating-point dtype, to nearest even.

    torch goes by way of float32 to narrower types, which rounds a second time. That matters only
    where a float32 value may be half-way between two of ``dtype``. There the first rounding is made
    to odd, which keeps the second one exact (Boldo and Melquiond, 2008).
    """
    if dtype.itemsize > 4:
        return values.to(dtype)
    wide = values.float()
    rounded = wide.to(dtype)
    if dtype.itemsize < 4:
        ties = ((wide.view(torch.int32) & _TIE_BITS) == 0).nonzero(as_tuple=True)
        exact, narrow = values[ties], wide[ties]
        integers, widened = narrow.view(torch.int32), narrow.double()
        odd = (integers - (widened.abs() > exact.abs()).int()) | 1
        rounded[ties] = torch.where(widened == exact, integers, odd).view(torch.float32).to(dtype)
    return rounded


def count_ulps(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How many steps lie between the elements of two tensors of one floating-point dtype (int64).

    0 means the same bits. What differs in bits alone (-0 and 0, two kinds of NaN) is 1 apart.

    >>> count_ulps(torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.0]))
    tensor([0, 1])
    """
    ours, theirs = view_as_integers(one).long(), view_as_integers(other).long()
    low = torch.iinfo(view_as_integers(one).dtype).max
    magnitudes, same_sign = (ours & low, theirs & low), (ours < 0) == (theirs < 0)
    apart = torch.where(
        same_sign, (magnitudes[0] - magnitudes[1]).abs(), magnitudes[0] + magnitudes[1]
    )
    apart = torch.where(apart < 0, INCOMPARABLE, apart)  # float64 of opposite signs
    if not (_are_finite(one) and _are_finite(other)):
        apart = _regard_nonfinite(one, other, apart)
    return torch.where((ours != theirs) & (apart == 0), 1, apart)


def _regard_nonfinite(one: torch.Tensor, other: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
    """Distances of two kinds of number are none, those of two NaN are 0."""
    kinds = _classify(one), _classify(other)
    both_nan = (kinds[0] == _NAN) & (kinds[1] == _NAN)
    apart = torch.where(both_nan, torch.zeros_like(apart), apart)
    return torch.where(kinds[0] != kinds[1], INCOMPARABLE, apart)


def format_ulps(ulp: int) -> str:
    """``3 ulp``; a number beside NaN or infinity is no number of ulp apart."""
    return (
        tr("{ulp:,} ulp", ulp=ulp)
        if ulp != INCOMPARABLE
        else tr("no number of ulp (NaN, infinity or integers)")
    )


def _are_finite(tensor: torch.Tensor) -> bool:
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 cannot be asked
    return bool(tensor.isfinite().all())


def _classify(tensor: torch.Tensor) -> torch.Tensor:
    """0 for a finite number, 1 and 2 for infinities, ``_NAN``."""
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 cannot be asked
    infinite = tensor.isinf().to(torch.int8) * torch.where(tensor > 0, 1, 2).to(torch.int8)
    return infinite + _NAN * tensor.isnan().to(torch.int8)
