"""Tensors in memory, where a test needs no file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from merge.tensors.lazy import LazyTensor, RowReader


@dataclass(frozen=True)
class InMemory(LazyTensor):
    """The rows of ``values``."""

    values: torch.Tensor

    def reader(self) -> RowReader:
        return lambda start, stop, out: out.copy_(self.values[start:stop])  # type: ignore[return-value]


def lazy(values: torch.Tensor) -> InMemory:
    """A tensor of these values."""
    return InMemory(tuple(values.shape), values.dtype, "memory", values)
