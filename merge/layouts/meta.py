"""Meta's folder: ``consolidated.NN.pth``, one file per GPU that the model was meant for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import UsageError
from ..lazy import LazyTensor, RowReader, block_rows, scratch
from . import llama
from .config import LlamaShape
from .pour import Piece, Poured

# Heads are put in order in pieces of about this many blocks of the arithmetic.
_BLOCKS_AT_ONCE = 4


@dataclass(frozen=True)
class RotaryPairs(LazyTensor):
    """q or k with the rows of each head in Meta's order: rotary pairs side by side.

    Hugging Face keeps the first halves of all pairs before the second halves. Within a head of
    ``head_dim`` rows, Meta's row ``2 i + h`` is Hugging Face's row ``h head_dim / 2 + i``.
    """

    base: LazyTensor
    head_dim: int

    def reader(self) -> RowReader:
        base_rows = self.base.reader()
        head, row_shape = self.head_dim, self.shape[1:]
        step = head * -(-_BLOCKS_AT_ONCE * block_rows(self.shape) // head)

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            first, last = start - start % head, -(-stop // head) * head
            for begin in range(first, last, step):
                end = min(begin + step, last)
                halves = scratch("halves", (end - begin, *row_shape), self.dtype)
                base_rows(begin, end, halves)
                pairs = halves.view(-1, 2, head // 2, *row_shape).transpose(1, 2)
                low, high = max(begin, start), min(end, stop)
                if (low, high) == (begin, end):
                    out[low - start : high - start].view(pairs.shape).copy_(pairs)
                else:  # parts of heads
                    rows = pairs.reshape(end - begin, *row_shape)
                    out[low - start : high - start].copy_(rows[low - begin : high - begin])

        return fill


def pour(
    tensors: Mapping[str, LazyTensor], shape: LlamaShape, num_shards: int | None
) -> list[Poured]:
    """Rename, reorder and split a model's tensors as Meta does.

    ``tensors`` must hold every name of the table. Raises ``UsageError`` when the model cannot be
    split evenly over ``num_shards`` (as many as Meta uses for this size by default).
    """
    count = llama.meta_shards(shape) if num_shards is None else num_shards
    _require_divisible(shape, count, chosen=num_shards is not None)
    return [_poured(entry, tensors[entry.hf], shape, count) for entry in llama.entries(shape)]


def _require_divisible(shape: LlamaShape, count: int, chosen: bool) -> None:
    for size in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size"):
        if count < 1 or getattr(shape, size) % count:
            raise UsageError(
                "the model cannot be split evenly over this many files",
                expected=f"--num_shards that divides {size} = {getattr(shape, size)}",
                found=f"--num_shards {count}",
                remedy="leave --num_shards out to get as many as Meta uses"
                if chosen
                else "Meta uses this many for a model of this size; give a number that divides",
            )


def _poured(entry: llama.Entry, tensor: LazyTensor, shape: LlamaShape, count: int) -> Poured:
    if entry.row.rotary is not None:
        tensor = RotaryPairs(
            tensor.shape, tensor.dtype, f"{tensor.origin}, rotary pairs", tensor, shape.head_dim
        )
    return Poured(entry.hf, tensor, _pieces(entry, tensor.shape, count))


def _pieces(entry: llama.Entry, shape: tuple[int, ...], count: int) -> tuple[Piece, ...]:
    """Equal parts along the table's axis, the remainder of a vocabulary in the last one."""
    axis = entry.row.shard_axis
    names = [f"consolidated.{shard:02}.pth" for shard in range(count)]
    if axis is None or count == 1:
        return tuple(Piece(name, entry.meta, None, 0, 0) for name in names)
    part = shape[axis] // count
    bounds = [part * shard for shard in range(count)] + [shape[axis]]
    return tuple(
        Piece(name, entry.meta, axis, bounds[shard], bounds[shard + 1])
        for shard, name in enumerate(names)
    )
