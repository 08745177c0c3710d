"""Infinite values and values that are no numbers: found as the result passes, tensor by tensor.

A checkpoint that has any is damaged, or was broken in training. One pass of ``aminmax`` over what
has been read costs little; what was computed here has been looked at already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..errors import NumberError
from .lazy import LazyTensor, RowReader


@dataclass
class Seen:
    """What has been found in a tensor that may have it."""

    nonfinite: bool = False


@dataclass(frozen=True)
class Finite(LazyTensor):
    """``base``, with every value looked at as it is read; ``allowed`` ones are only noted."""

    base: LazyTensor
    allowed: bool = False
    seen: Seen = field(default_factory=Seen, compare=False)

    def without_digest(self) -> LazyTensor:
        return self.base.without_digest()

    def reader(self) -> RowReader:
        base_rows = self.base.reader()

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            base_rows(start, stop, out)
            if not is_finite(out):
                self._found(start, out)

        return fill

    def _found(self, first: int, rows: torch.Tensor) -> None:
        self.seen.nonfinite = True
        if self.allowed:
            return
        bad = ~rows.isfinite()
        row = int(bad.nonzero()[0][0])
        raise NumberError(
            "the weights hold a value that is no finite number",
            file=self.base.without_digest().path,
            tensor=f"{self.origin}, row {first + row}",
            expected="finite values",
            found=f"{float(rows[bad][0]):g}",
            remedy="the file is damaged, or its training broke: fetch it again or take another; "
            "--allow_nonfinite writes the values as they are",
        )


def is_finite(rows: torch.Tensor) -> bool:
    """Whether no value is infinite or no number. Neither is smaller or greater than all others."""
    if not rows.numel():
        return True
    low, high = torch.aminmax(rows)
    return bool(low.isfinite()) and bool(high.isfinite())


def finite(tensors: Mapping[str, LazyTensor], allowed: bool) -> dict[str, LazyTensor]:
    """The same tensors, those of floats looked at as they are read."""
    return {name: _looked_at(tensor, allowed) for name, tensor in tensors.items()}


def _looked_at(tensor: LazyTensor, allowed: bool) -> LazyTensor:
    done = tensor.rejects_nonfinite and not allowed
    if done or not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
        return tensor
    return Finite(tensor.shape, tensor.dtype, tensor.origin, tensor, allowed)


def notes(tensors: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """What is to be told of tensors in which something was found and allowed."""
    checked = [(name, it) for name, it in tensors.items() if isinstance(it, Finite)]
    found = [name for name, tensor in checked if tensor.seen.nonfinite]
    if not found:
        return ()
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return (f"{len(found)} tensors hold values that are no finite numbers: {listed}",)
