"""Which type each tensor gets, against llama.cpp's own quantizer, asked without writing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from merge.layouts.gguf.file_types import FILE_TYPES, Traits, choose_type, get_sort_key
from merge.outtypes import GUIDED_OUTTYPES, QUANTIZED_OUTTYPES
from merge.settings import OUTTYPES
from tests.kit.llama_cpp import quantize

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@dataclass(frozen=True)
class _Shape:
    layers: int
    hidden: int
    inner: int
    heads: int
    keys: int
    vocab: int = 49954
    experts: int = 0
    is_tied: bool = False

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, key = self.hidden, self.hidden // self.heads * self.keys
        yield "token_embd.weight", (self.vocab, hidden)
        yield "output_norm.weight", (hidden,)
        if not self.is_tied:
            yield "output.weight", (self.vocab, hidden)
        for layer in range(self.layers):
            yield f"blk.{layer}.attn_norm.weight", (hidden,)
            for role, rows in {"q": hidden, "k": key, "v": key, "output": hidden}.items():
                yield f"blk.{layer}.attn_{role}.weight", (rows, hidden)
            stack = (self.experts,) if self.experts else ()
            suffix = "_exps" if stack else ""
            for role, shape in {
                "gate": (self.inner, hidden),
                "up": (self.inner, hidden),
                "down": (hidden, self.inner),
            }.items():
                yield f"blk.{layer}.ffn_{role}{suffix}.weight", (*stack, *shape)
            if stack:
                yield f"blk.{layer}.ffn_gate_inp.weight", (self.experts, hidden)


SHAPES = {
    "7b": _Shape(32, 4096, 11008, 32, 32),
    "llama3-8b": _Shape(32, 4096, 14336, 32, 8, 128256),
    "70b": _Shape(80, 8192, 28672, 64, 8, 32000),
    "65b": _Shape(80, 8192, 22016, 64, 64, 32000),
    "1b-tied": _Shape(16, 2048, 8192, 32, 8, 128256, is_tied=True),
    "3b-of-odd-width": _Shape(26, 3200, 8640, 32, 32, 32000),
    "width-of-no-block": _Shape(3, 72, 176, 9, 3, 105),
    "mixtral": _Shape(32, 4096, 14336, 32, 8, 32000, experts=8),
}


def _write_header(path: Path, shape: _Shape) -> None:
    """A GGUF file in f16 whose data are a hole."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, shape.layers),
        (writer.add_context_length, 2048),
        (writer.add_embedding_length, shape.hidden),
        (writer.add_feed_forward_length, shape.inner),
        (writer.add_head_count, shape.heads),
        (writer.add_head_count_kv, shape.keys),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, shape.vocab),
    ):
        add(value)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    end = 0
    for name, size in shape.tensors():
        is_plain = len(size) == 1 or "gate_inp" in name
        dtype = np.dtype(np.float32 if is_plain else np.float16)
        nbytes = int(np.prod(size)) * dtype.itemsize
        writer.add_tensor_info(name, size, dtype, nbytes)
        end += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 32 + end)


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
def test_types_and_order_are_those_of_llama_quantize(
    tmp_path: Path, model: str, guided: bool
) -> None:
    shape, source = SHAPES[model], tmp_path / "f16.gguf"
    _write_header(source, shape)
    imatrix = None
    if guided:  # only whether there is one matters here
        imatrix = tmp_path / "imatrix.npz"
        np.savez(imatrix, **{"output.weight": np.ones(shape.hidden, np.float32)})
    common = {"source": source, "target": tmp_path / "none.gguf", "dry_run": True}
    jobs = [{**common, "file_type": one, "imatrix": imatrix} for one in QUANTIZED_OUTTYPES]
    names = dict(shape.tensors())
    traits = Traits(
        shape.layers, shape.heads // shape.keys, shape.experts, shape.is_tied, bool(imatrix)
    )
    for outtype, found in zip(QUANTIZED_OUTTYPES, quantize(jobs), strict=True):
        expected = {
            name: choose_type(outtype, name, names[name], traits)
            for name in sorted(names, key=get_sort_key)
        }
        assert list(found["types"].items()) == list(expected.items()), outtype


def test_every_type_that_can_be_asked_for_is_in_the_table() -> None:
    assert FILE_TYPES.keys() == set(OUTTYPES) - {"auto"}
    assert {gguf.LlamaFileType[name] for name, _ in FILE_TYPES.values()}
    assert set(GUIDED_OUTTYPES) < FILE_TYPES.keys()
