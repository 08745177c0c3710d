"""Content digests of tensors by xxhash alone, in both versions that manifests have."""

from __future__ import annotations

from math import prod

import torch
from xxhash import xxh3_128

OF_BLOCKS, WHOLE = "xxh3_128_of_blocks", "xxh3_128"


def hash_whole(tensor: torch.Tensor) -> str:
    """Version 1: of all bytes."""
    return xxh3_128(_get_bytes(tensor)).hexdigest()


def hash_blocks(tensor: torch.Tensor) -> str:
    """Version 2: of the digests of blocks, whose rows are the largest power of two that makes at
    most 2^19 elements, but at least 64.
    """
    per_row = max(1, prod(tensor.shape[1:]))
    rows = 64
    while 2 * rows * per_row <= 1 << 19:
        rows *= 2
    blocks = [tensor[start : start + rows] for start in range(0, len(tensor), rows)]
    return xxh3_128(b"".join(xxh3_128(_get_bytes(block)).digest() for block in blocks)).hexdigest()


def _get_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
