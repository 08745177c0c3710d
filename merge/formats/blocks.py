"""Matrices in ggml's quantized blocks, read as float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..option_checks import require_gguf
from ..tensors.lazy import LazyTensor, RowReader, block_rows, scratch

# Q8_0: 32 elements of a row as a float16 scale and 32 int8.
BLOCK, BLOCK_BYTES = 32, 34
Q8_0_NAME = "q8_0"


@dataclass(frozen=True)
class BlockTensor(LazyTensor):
    """A matrix as float32; ``blocks`` are its bytes, shape (rows, bytes of a row), uint8.

    ``kind`` is ggml's name of their type. Types other than Q8_0 are read by the package ``gguf``.
    """

    blocks: LazyTensor
    kind: str

    def reader(self) -> RowReader:
        block_rows_of = self.blocks.reader()
        grid = block_rows(self.shape)
        dequantize = _dequantize_q8_0 if self.is_q8_0 else _find_dequantizer(self.kind)

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            for begin in range(start, stop, grid):
                end = min(begin + grid, stop)
                raw = scratch("blocks", (end - begin, *self.blocks.shape[1:]), torch.uint8)
                block_rows_of(begin, end, raw)
                dequantize(raw, out[begin - start : end - start])

        return fill

    @property
    def is_q8_0(self) -> bool:
        """Whether each element has a bound of its own, half a step of its block."""
        return self.kind.lower() == Q8_0_NAME


def _dequantize_q8_0(raw: torch.Tensor, out: torch.Tensor) -> None:
    pairs = raw.view(-1, BLOCK_BYTES)
    scales = pairs[:, :2].contiguous().view(torch.float16)
    torch.mul(pairs[:, 2:].view(torch.int8), scales.float(), out=out.view(-1, BLOCK))


def _find_dequantizer(kind: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    require_gguf()
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    number = GGMLQuantizationType[kind]

    def fill(raw: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(torch.from_numpy(dequantize(raw.numpy(), number)))

    return fill
