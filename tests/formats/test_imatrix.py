"""Importance matrices: both forms are read alike, and what is none is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from merge.errors import FormatError
from merge.formats.imatrix import iter_misfits, read_imatrix
from tests.kit.imatrices import CHUNKS, DATASET, TOKENS, Factors, write_gguf, write_legacy

pytest.importorskip("gguf", reason="needs the package gguf")

SUMS = {
    "blk.0.attn_q.weight": np.arange(64, dtype=np.float32),
    "blk.0.ffn_down.weight": np.arange(96, dtype=np.float32) / 3,
}
COLUMNS = {"token_embd.weight": 64, "output.weight": 64, **{n: len(v) for n, v in SUMS.items()}}


@pytest.mark.parametrize("write", [write_gguf, write_legacy])
def test_factors_are_means_over_what_was_counted(
    tmp_path: Path, write: Callable[[Path, Factors], Path]
) -> None:
    found = read_imatrix(write(tmp_path / "imatrix", SUMS))
    assert (found.dataset, found.chunks) == (DATASET, CHUNKS)
    assert found.factors.keys() == SUMS.keys()
    for name, sums in SUMS.items():
        assert np.array_equal(found.factors[name].numpy(), sums / np.float32(TOKENS))
    assert not list(iter_misfits(found, COLUMNS))


def test_an_older_file_may_end_after_its_entries(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "imatrix.dat", SUMS)
    path.write_bytes(path.read_bytes()[: -8 - len(DATASET.encode())])
    found = read_imatrix(path)
    assert (found.dataset, found.chunks, len(found.factors)) == (None, 0, 2)


@pytest.mark.parametrize(
    ("columns", "misfit"),
    [
        (COLUMNS | {"blk.0.attn_q.weight": 32}, ("blk.0.attn_q.weight", 32, 64)),
        (COLUMNS | {"blk.1.attn_q.weight": 64}, ("blk.1.attn_q.weight", 64, None)),
        ({"blk.0.attn_q.weight": 64}, ("blk.0.ffn_down.weight", None, 96)),
    ],
    ids=["another width", "a layer more", "a matrix less"],
)
def test_another_models_matrices_are_told(
    tmp_path: Path, columns: dict[str, int], misfit: tuple[str, int | None, int | None]
) -> None:
    found = read_imatrix(write_gguf(tmp_path / "imatrix.gguf", SUMS))
    assert next(iter_misfits(found, columns)) == misfit


def _cut(data: bytes) -> bytes:
    return data[:-40]


@pytest.mark.parametrize(
    "spoil",
    [
        _cut,
        lambda _: b"",
        lambda _: b"abc",
        lambda _: struct.pack("<i", 0),
        lambda _: b"PK\x03\x04" + bytes(60),
        lambda data: data.replace(struct.pack("<f", 1.0), struct.pack("<f", -1.0)),
        lambda data: data.replace(struct.pack("<f", 1.0), struct.pack("<f", np.nan)),
        lambda data: data.replace(b"blk.0.attn_q", b"blk.0.\xff\xfftn_q"),
    ],
    ids=["cut off", "empty", "short", "no entry", "a zip", "negative", "nan", "no text"],
)
@pytest.mark.parametrize("write", [write_gguf, write_legacy])
def test_what_is_no_importance_matrix_is_refused(
    tmp_path: Path, write: Callable[[Path, Factors], Path], spoil: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / "imatrix", SUMS)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(FormatError) as caught:
        read_imatrix(path)
    assert caught.value.facts["file"] == str(path)


@pytest.mark.parametrize("key", ["imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"])
def test_a_gguf_file_of_another_kind_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(FormatError, match="no importance matrix"):
        read_imatrix(write_gguf(tmp_path / "model.gguf", SUMS, **{key: None}))
