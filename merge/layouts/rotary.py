"""The two orders of the rows of q and k, and the way from one to the other.

Rotary positions turn pairs of rows within each head. Meta keeps the two rows of a pair side by
side; Hugging Face keeps the first rows of all pairs before the second ones. Within a head of
``head_dim`` rows, Meta's row ``2 i + h`` is Hugging Face's row ``h head_dim / 2 + i``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..messages import tr
from ..tensors.lazy import LazyTensor, RowReader, block_rows, scratch

# Heads are put in order in pieces of about this many blocks of the arithmetic.
_BLOCKS_AT_ONCE = 4


@dataclass(frozen=True)
class RotaryPermutation(LazyTensor):
    """q or k of shape (heads x head_dim, in), with the rows of each head in another order.

    ``order`` is that of the result: ``pairs`` (Meta's) from Hugging Face's, ``halves`` (Hugging
    Face's) from Meta's.
    """

    base: LazyTensor
    head_dim: int
    order: Literal["pairs", "halves"]

    def reader(self) -> RowReader:
        base_rows = self.base.reader()
        head, row_shape = self.head_dim, self.shape[1:]
        groups = (2, head // 2) if self.order == "pairs" else (head // 2, 2)
        step = head * -(-_BLOCKS_AT_ONCE * block_rows(self.shape) // head)
        # One of these may read from one of the other direction, so the memory is not shared.
        purpose = tr("rotary {order}", order=self.order)

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            first, last = start - start % head, -(-stop // head) * head
            for begin in range(first, last, step):
                end = min(begin + step, last)
                given = scratch(purpose, (end - begin, *row_shape), self.dtype)
                base_rows(begin, end, given)
                ordered = given.view(-1, *groups, *row_shape).transpose(1, 2)
                low, high = max(begin, start), min(end, stop)
                if (low, high) == (begin, end):
                    out[low - start : high - start].view(ordered.shape).copy_(ordered)
                else:  # parts of heads
                    rows = ordered.reshape(end - begin, *row_shape)
                    out[low - start : high - start].copy_(rows[low - begin : high - begin])

        return fill


def to_interleaved(tensor: LazyTensor, head_dim: int) -> RotaryPermutation:
    """Hugging Face's q or k in Meta's order."""
    return _permute(tensor, head_dim, "pairs")


def to_half_split(tensor: LazyTensor, head_dim: int) -> RotaryPermutation:
    """Meta's q or k in Hugging Face's order."""
    return _permute(tensor, head_dim, "halves")


def _permute(
    tensor: LazyTensor, head_dim: int, order: Literal["pairs", "halves"]
) -> RotaryPermutation:
    origin = f"{tensor.origin}, rotary {order}"
    return RotaryPermutation(tensor.shape, tensor.dtype, origin, tensor, head_dim, order)
