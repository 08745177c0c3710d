"""llama.cpp's quantizer by rows: the types of ``gguf``, and blocks that it reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from merge.errors import NumberError, UsageError
from merge.formats import ggml
from tests.kit.llama_cpp import skip_without_quantizer

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def test_types_have_the_numbers_and_sizes_of_the_package() -> None:
    assert ggml.TYPE_NUMBERS.keys() == ggml.BLOCKS.keys()
    for kind, number in ggml.TYPE_NUMBERS.items():
        its = gguf.GGMLQuantizationType[kind]
        assert number == its.value
        assert ggml.BLOCKS[kind] == gguf.GGML_QUANT_SIZES[its]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_simple_types_are_what_the_package_makes_too(kind: str) -> None:
    skip_without_quantizer()
    rows = torch.randn((3, 64), generator=torch.Generator().manual_seed(0))
    out = torch.zeros((3, ggml.count_row_bytes(kind, 64)), dtype=torch.uint8)
    ggml.quantize_rows(kind, rows, out, None, "rows")
    expected = gguf.quantize(rows.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(out, torch.from_numpy(expected))


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q4_0"])
def test_blocks_do_not_depend_on_how_rows_are_grouped(kind: str) -> None:
    skip_without_quantizer()
    rows = torch.randn((150, 512), generator=torch.Generator().manual_seed(0))
    whole = torch.zeros((150, ggml.count_row_bytes(kind, 512)), dtype=torch.uint8)
    ggml.quantize_rows(kind, rows, whole, None, "rows")
    parts = torch.zeros_like(whole)
    for first in range(0, 150, 7):
        part = slice(first, first + 7)
        ggml.quantize_rows(kind, rows[part], parts[part], None, "rows")
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "Q2_K"])
def test_a_scale_beyond_float16_is_refused(kind: str) -> None:
    skip_without_quantizer()
    rows = torch.full((1, 256), 1e9)
    rows[0, ::2] *= -1
    out = torch.zeros((1, ggml.count_row_bytes(kind, 256)), dtype=torch.uint8)
    with pytest.raises(NumberError, match="cannot be quantized") as caught:
        ggml.quantize_rows(kind, rows, out, None, "model.weight, rows 0 to 1")
    assert caught.value.facts["tensor"] == "model.weight, rows 0 to 1"


@pytest.mark.parametrize("content", [b"no library", None])
def test_a_library_that_cannot_be_loaded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    library = tmp_path / "llama_cpp" / "lib" / "libggml-base.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    if content is not None:
        library.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    ggml.load_library.cache_clear()
    try:
        with pytest.raises(UsageError, match="cannot be loaded") as caught:
            ggml.load_library()
    finally:
        ggml.load_library.cache_clear()
    assert caught.value.facts["file"] == str(library.parent)
