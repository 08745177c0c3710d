"""Matrices quantized as they are read, row by row: Q8_0 by ``gguf``, other types by llama.cpp."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import torch

from ...errors import NumberError
from ...formats import ggml
from ...messages import tr
from ...tensors.lazy import LazyTensor, RowReader, block_rows, scratch
from ...tensors.patched import PatchedTensor

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# A block's scale is a float16, for which its largest element is divided by 127.
_LARGEST_Q8_0 = 65504.0 * 127
# Elements of a row that the speed of a type is measured on.
_SAMPLE = 4096


@dataclass(frozen=True)
class QuantizedTensor(LazyTensor):
    """A matrix in blocks: uint8, shape (rows, bytes of a row), quantized row by row.

    ``kind`` is ggml's name of the type. ``importance`` has a factor for each column, which
    llama.cpp weighs errors by.
    """

    base: LazyTensor
    kind: str
    importance: torch.Tensor | None = None

    def reader(self) -> RowReader:
        base_rows = self.base.reader()
        grid = block_rows(self.base.shape)
        quantize = self._choose_quantizer()

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            begin = start
            while begin < stop:  # by the base's own blocks, which it would make whole anyway
                end = min(begin - begin % grid + grid, stop)
                rows = scratch("quantized", (end - begin, *self.base.shape[1:]), self.base.dtype)
                base_rows(begin, end, rows)
                quantize(begin, rows.float(), out[begin - start : end - start])
                begin = end

        return fill

    def _choose_quantizer(self) -> Callable[[int, torch.Tensor, torch.Tensor], None]:
        return self._quantize_q8_0 if self.kind == "Q8_0" else self._quantize_by_llama_cpp

    def _quantize_q8_0(self, first: int, rows: torch.Tensor, out: torch.Tensor) -> None:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        self._require_representable(rows, first, _LARGEST_Q8_0)
        out.copy_(torch.from_numpy(quantize(rows.numpy(), GGMLQuantizationType.Q8_0)))

    def _quantize_by_llama_cpp(self, first: int, rows: torch.Tensor, out: torch.Tensor) -> None:
        self._require_representable(rows, first, torch.finfo(torch.float32).max)
        ggml.quantize_rows(self.kind, rows, out, self.importance, self._describe_rows(first, rows))

    def _describe_rows(self, first: int, rows: torch.Tensor) -> str:
        return tr(
            "{tensor}, rows {first} to {last}",
            tensor=self.origin,
            first=first,
            last=first + len(rows) - 1,
        )

    def _require_representable(self, rows: torch.Tensor, first: int, largest: float) -> None:
        low, high = (float(bound) for bound in torch.aminmax(rows))
        if low >= -largest and high <= largest:  # false for NaN too
            return
        raise NumberError(
            tr("a value cannot be quantized"),
            tensor=self._describe_rows(first, rows),
            expected=tr("finite values up to {largest:g}", largest=largest),
            found=tr("values from {low:g} to {high:g}", low=low, high=high),
            remedy=tr(
                "write --outtype bf16 or f32; if the value is inf or nan, an input is damaged"
            ),
        )


def convert_to_type(
    tensor: LazyTensor, kind: str, importance: torch.Tensor | None = None
) -> LazyTensor:
    """The tensor as a file holds it in the type ``kind``, one that fits its shape."""
    if kind in ggml.BLOCKS:
        shape = (tensor.rows, ggml.count_row_bytes(kind, tensor.shape[1]))
        return QuantizedTensor(shape, torch.uint8, tensor.origin, tensor, kind, importance)
    if tensor.dtype == _PLAIN[kind]:
        return tensor
    return PatchedTensor(tensor.shape, _PLAIN[kind], tensor.origin, tensor)


def estimate_seconds(tensors: Iterable[LazyTensor]) -> float:
    """How long llama.cpp takes to quantize these on one core, by a few rows of each type here."""
    elements: Counter[tuple[str, bool]] = Counter()
    for tensor in tensors:
        if isinstance(tensor, QuantizedTensor) and tensor.kind != "Q8_0":
            elements[tensor.kind, tensor.importance is not None] += prod(tensor.base.shape)
    return sum(
        count * _measure_seconds(kind, torch.ones(_SAMPLE) if is_weighed else None)
        for (kind, is_weighed), count in elements.items()
    )


def _measure_seconds(kind: str, importance: torch.Tensor | None) -> float:
    """Seconds for an element, of rows of random numbers."""
    rows = torch.randn((2, _SAMPLE), generator=torch.Generator().manual_seed(0))
    out = torch.empty((2, ggml.count_row_bytes(kind, _SAMPLE)), dtype=torch.uint8)
    ggml.quantize_rows(kind, rows[:1], out[:1], importance, tr("a sample"))  # which prepares tables
    started = time.perf_counter()
    ggml.quantize_rows(kind, rows, out, importance, tr("a sample"))
    return (time.perf_counter() - started) / rows.numel()
