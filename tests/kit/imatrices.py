"""Importance matrices in both forms of llama.cpp, of random factors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Factors = Mapping[str, NDArray[np.float32]]
CHUNKS, TOKENS = 3, 7
DATASET = "甲乙丙.txt"


def make_factors(columns: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
    """Sums of squares, as activations give them: of very different sizes, some of them 0."""
    generator = np.random.default_rng(0)
    found = {}
    for name, count in columns.items():
        values = generator.lognormal(sigma=2.0, size=count).astype(np.float32)
        values[:: max(2, count // 3)] = 0
        found[name] = values
    return found


def write_gguf(path: Path, sums: Factors, **metadata: object) -> Path:
    """As llama-imatrix writes today: sums, and the number of tokens that they are of."""
    import gguf

    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [DATASET])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", 512)
    for key in metadata:
        del writer.kv_data[0][key]
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), TOKENS, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy(path: Path, sums: Factors) -> Path:
    """As llama-imatrix wrote until 2025, with the number of calls."""
    parts = [struct.pack("<i", len(sums))]
    for name, values in sums.items():
        text = name.encode()
        parts += [struct.pack("<i", len(text)), text]
        parts += [struct.pack("<ii", TOKENS, len(values)), values.astype("<f4").tobytes()]
    text = DATASET.encode()
    parts += [struct.pack("<ii", CHUNKS, len(text)), text]
    path.write_bytes(b"".join(parts))
    return path
