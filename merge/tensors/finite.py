"""NaN and Inf in the result: found as it is written, tensor by tensor.

A checkpoint that has any is damaged, or was broken in training. One look at the bits of what has
been read costs little; what was computed here has been checked already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import NumberError
from ..messages import tr
from .lazy import LazyTensor, RowReader

# The bits of the largest finite number; those of Inf and NaN come after them.
_LARGEST_BITS = {torch.float16: 0x7BFF, torch.bfloat16: 0x7F7F}
_SIGN_BIT = 0x8000


@dataclass
class _NonfiniteFlag:
    """What has been found in a tensor that may have it."""

    nonfinite: bool = False


@dataclass(frozen=True)
class _CheckedTensor(LazyTensor):
    """``base``, with every value checked as it is read; ``allowed`` NaN and Inf are only noted."""

    base: LazyTensor
    allowed: bool = False
    flag: _NonfiniteFlag = field(default_factory=_NonfiniteFlag, compare=False)

    def without_digest(self) -> LazyTensor:
        return self.base.without_digest()

    def reader(self) -> RowReader:
        base_rows = self.base.reader()

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            base_rows(start, stop, out)
            if not is_finite(out):
                self._note_or_refuse(start, out)

        return fill

    def _note_or_refuse(self, first: int, rows: torch.Tensor) -> None:
        self.flag.nonfinite = True
        if self.allowed:
            return
        bad = ~rows.isfinite()
        row = int(bad.nonzero()[0][0])
        raise NumberError(
            tr("the weights hold NaN or Inf"),
            file=self.base.without_digest().path,
            tensor=tr("{tensor}, row {row}", tensor=self.origin, row=first + row),
            expected=tr("finite values"),
            found=f"{float(rows[bad][0]):g}",
            remedy=tr(
                "the file is damaged, or its training broke: fetch it again or take "
                "another; --allow_nonfinite writes the values as they are"
            ),
        )


def is_finite(rows: torch.Tensor) -> bool:
    """Whether no value is NaN or Inf: neither survives a look at the smallest and the largest."""
    if not rows.numel():
        return True
    if rows.dtype in _LARGEST_BITS:
        return _has_bits_up_to(rows, _LARGEST_BITS[rows.dtype])
    low, high = torch.aminmax(rows)
    return bool(low.isfinite()) and bool(high.isfinite())


def _has_bits_up_to(rows: torch.Tensor, limit: int) -> bool:
    """Whether no value of 16 bits has a magnitude beyond that with the bits ``limit``.

    Bits are in the order of magnitudes, those of NaN last. As signed integers the positive values
    come last, as unsigned ones the negative; four times as fast as extremes of the values.
    """
    return not rows.numel() or _find_largest_bits(rows) <= limit


def _find_largest_bits(rows: torch.Tensor) -> int:
    bits = rows.view(torch.int16).numpy()
    return max(int(bits.max()), int(bits.view("uint16").max()) - _SIGN_BIT)


def find_largest(rows: torch.Tensor) -> float | None:
    """The largest magnitude among float16 or bfloat16 values, NaN if one is; None for other dtypes.

    Where it is below the largest number of the dtype, what was rounded to these values had no NaN,
    no Inf, and nothing beyond that number: rounding keeps the order of numbers.
    """
    if rows.dtype not in _LARGEST_BITS:
        return None
    bits = _find_largest_bits(rows) if rows.numel() else 0
    if rows.dtype == torch.float16:
        return float(np.uint16(bits).view(np.float16))
    return float(np.uint32(bits << 16).view(np.float32))


def check_finite(tensors: Mapping[str, LazyTensor], allowed: bool) -> dict[str, LazyTensor]:
    """The same tensors; those of floats are checked for NaN and Inf as they are read."""
    return {name: _add_check(tensor, allowed) for name, tensor in tensors.items()}


def _add_check(tensor: LazyTensor, allowed: bool) -> LazyTensor:
    done = tensor.rejects_nonfinite and not allowed
    if done or not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
        return tensor
    return _CheckedTensor(tensor.shape, tensor.dtype, tensor.origin, tensor, allowed)


def find_nonfinite(tensors: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """The names of tensors in which NaN or Inf was found and allowed."""
    checked = [(name, it) for name, it in tensors.items() if isinstance(it, _CheckedTensor)]
    return tuple(name for name, tensor in checked if tensor.flag.nonfinite)


def note_nonfinite(tensors: Mapping[str, LazyTensor], names: Iterable[str]) -> None:
    """Take what another process has found in these tensors."""
    for name in names:
        tensor = tensors[name]
        assert isinstance(tensor, _CheckedTensor)
        tensor.flag.nonfinite = True


def describe_nonfinite(tensors: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """A note that names the tensors in which NaN or Inf was found and allowed."""
    found = find_nonfinite(tensors)
    if not found:
        return ()
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return (tr("{n_found} tensors hold NaN or Inf: {listed}", n_found=len(found), listed=listed),)
