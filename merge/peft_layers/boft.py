"""BOFT without the CUDA extension that PEFT compiles for it.

PEFT asks for the extension when a layer is made. Compiling takes minutes where there is a compiler,
and waits without end for one that was killed. Without the extension PEFT sets the number of
butterfly factors to 1, whatever ``adapter_config.json`` says, and writes tensors of one factor.
So the tensors say how many there are, and what the extension computes is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch

from ..tensors.lazy import LazyTensor


class _BlockDiagonals:
    """What PEFT uses of its extension in a merge."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> tuple[torch.Tensor]:
        """Block diagonal matrices ``(N, D H, D H)`` of blocks ``(N, D, H, H)``."""
        count, number, size, _ = blocks.shape
        out = blocks.new_zeros(count, number, size, number, size)
        each = torch.arange(number)
        out[:, each, :, each] = blocks.transpose(0, 1)
        return (out.view(count, number * size, number * size),)


# What takes the place of the extension in this thread: False outside of ``without_extension``.
_stand_in: ContextVar[_BlockDiagonals | bool | None] = ContextVar("_stand_in", default=False)


@contextmanager
def without_extension(tensors: Mapping[str, LazyTensor]) -> Iterator[None]:
    """Let PEFT find the extension here if an adapter's ``tensors`` have several factors, else none.

    Other threads, and what runs afterwards, see PEFT as it is.
    """
    _patch_peft()
    several = any(key.endswith("boft_R") and tensor.rows > 1 for key, tensor in tensors.items())
    token = _stand_in.set(_BlockDiagonals() if several else None)
    try:
        yield
    finally:
        _stand_in.reset(token)


@lru_cache
def _patch_peft() -> None:
    from peft.tuners.boft import layer

    original = layer.get_fbd_cuda

    def get_fbd_cuda() -> Any:
        known = _stand_in.get()
        return original() if known is False else known

    layer.get_fbd_cuda = get_fbd_cuda
