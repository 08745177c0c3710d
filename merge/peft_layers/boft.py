"""BOFT without the CUDA extension that PEFT compiles for it.

PEFT asks for the extension when a layer is made. Compiling takes minutes where there is a compiler,
and waits without end for one that was killed. Without the extension PEFT sets the number of
butterfly factors to 1, whatever ``adapter_config.json`` says, and writes tensors of one factor.
So the tensors say how many there are, and what the extension computes is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from ..tensors.lazy import LazyTensor


class _BlockDiagonals:
    """What PEFT uses of its extension in a merge, computed by torch."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> tuple[torch.Tensor]:
        """Block diagonal matrices ``(N, D H, D H)`` of blocks ``(N, D, H, H)``."""
        count, number, size, _ = blocks.shape
        out = blocks.new_zeros(count, number, size, number, size)
        each = torch.arange(number)
        out[:, each, :, each] = blocks.transpose(0, 1)
        return (out.view(count, number * size, number * size),)


# What PEFT calls for its extension in this thread, while ``without_extension`` is entered.
_get_extension: ContextVar[Callable[[], _BlockDiagonals | None]] = ContextVar("_get_extension")


@contextmanager
def without_extension(tensors: Mapping[str, LazyTensor]) -> Iterator[None]:
    """Let PEFT find ``_BlockDiagonals`` for its extension if an adapter's ``tensors`` have several
    factors, and no extension otherwise.

    Other threads, and what runs afterwards, see PEFT as it is.
    """
    _patch_peft()
    several = any(key.endswith("boft_R") and tensor.rows > 1 for key, tensor in tensors.items())
    token = _get_extension.set(_BlockDiagonals if several else lambda: None)
    try:
        yield
    finally:
        _get_extension.reset(token)


@lru_cache
def _patch_peft() -> None:
    from peft.tuners.boft import layer

    original = layer.get_fbd_cuda
    layer.get_fbd_cuda = lambda: _get_extension.get(original)()
