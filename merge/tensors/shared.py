"""Tensors that several jobs read side by side: rows that all of them want are read once.

A thread that computes the same rows for one job after the other does so in a ``read_once`` block.
No thread waits for another one's rows, and outside such a block nothing is shared.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .lazy import Checkpoint, LazyTensor, RowReader, scratch


class _Held(threading.local):
    """The rows that a thread keeps, by the tensor's ``id``, and from where to where they go."""

    def __init__(self) -> None:
        self.start, self.stop = 0, 0
        self.rows: dict[int, torch.Tensor] = {}


_held = _Held()


@contextmanager
def read_once(start: int, stop: int) -> Iterator[None]:
    """In the block, this thread reads rows ``start`` to ``stop`` of each shared tensor once."""
    _held.start, _held.stop = start, stop
    try:
        yield
    finally:
        _held.start, _held.stop = 0, 0
        _held.rows.clear()


@dataclass(frozen=True)
class _SharedTensor(LazyTensor):
    """``base``, whose rows are kept for the next reader within a ``read_once`` block."""

    base: LazyTensor

    @property
    def path(self) -> Path | None:
        return self.base.path

    @property
    def rejects_nonfinite(self) -> bool:
        return self.base.rejects_nonfinite

    def reader(self) -> RowReader:
        read, key, rows, shape = self.base.reader(), id(self), self.rows, self.shape
        dtype = self.dtype

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            first, last = _held.start, min(_held.stop, rows)
            if not first <= start <= stop <= last:
                read(start, stop, out)
                return
            block = _held.rows.get(key)
            if block is None:
                purpose = f"shared {len(_held.rows)}"
                block = scratch(purpose, (last - first, *shape[1:]), dtype)
                read(first, last, block)
                _held.rows[key] = block
            out.copy_(block[start - first : stop - first])

        return fill


def share(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint for several jobs, which read it side by side."""
    tensors = {
        name: _SharedTensor(tensor.shape, tensor.dtype, tensor.origin, tensor)
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)
