"""Mixtral in GGUF: experts stacked as the package reads them, and what cannot be right refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge import merge_lora, verify_merge
from merge.errors import LayoutError
from merge.layouts.opening import open_checkpoint
from tests.kit.files import Tensors, load_weights, save_shards
from tests.kit.mixtrals import make_mixtral, make_mixtral_adapter
from tests.kit.tokenizer_models import write_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixtral(tmp_path_factory.mktemp("mixtral") / "base")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixtral_adapter(tmp_path_factory.mktemp("mixtral") / "lora", base)


def _merge(base: Path, lora: Path, output: Path, **options: Any) -> Path:
    merge_lora(base, lora, output, output_type="gguf", **options)
    return output


def test_the_package_reads_experts_side_by_side(base: Path, lora: Path, tmp_path: Path) -> None:
    options = {"outtype": "f32", "dtype": "float32"}
    path = _merge(base, lora, tmp_path / "out", **options) / "ggml-model-f32.gguf"
    merge_lora(base, lora, tmp_path / "hf", output_type="huggingface", dtype="float32")
    weights = load_weights(tmp_path / "hf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for matrix, name in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        stem = "model.layers.1.block_sparse_moe.experts"
        wanted = torch.stack([weights[f"{stem}.{n}.{matrix}.weight"] for n in range(4)])
        found = tensors[f"blk.1.ffn_{name}_exps.weight"]
        assert found.shape.tolist() == list(wanted.shape)[::-1]
        assert np.array_equal(found.data, wanted.numpy())


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_routers_stay_in_float32(base: Path, lora: Path, tmp_path: Path, outtype: str) -> None:
    path = _merge(base, lora, tmp_path / "out", outtype=outtype) / f"ggml-model-{outtype}.gguf"
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    assert kinds["blk.0.ffn_gate_exps.weight"] == outtype.upper()


def test_workers_and_memory_change_no_byte(base: Path, lora: Path, tmp_path: Path) -> None:
    files = [
        (
            _merge(base, lora, tmp_path / str(n) / "out", num_workers=n, max_memory=memory)
            / "ggml-model-f16.gguf"
        ).read_bytes()
        for n, memory in ((1, "32MB"), (3, "64MB"))
    ]
    assert files[0] == files[1]


def test_an_expert_with_other_values_is_found(base: Path, lora: Path, tmp_path: Path) -> None:
    output = _merge(base, lora, tmp_path / "out")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    tensor: Any = open_checkpoint(output).tensors[name]
    path = output / "ggml-model-f16.gguf"
    content = bytearray(path.read_bytes())
    content[tensor.offset : tensor.offset + 2] = np.float16(3).tobytes()
    path.write_bytes(content)
    faults = "\n".join(str(fault) for fault in verify_merge(output).faults)
    assert "blk.1.ffn_up_exps.weight, number 2" in faults


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps(config), encoding="utf-8")

    return change


def _edit_weights(edit: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_weights(folder)
        edit(weights)
        for path in folder.glob("pytorch_model*"):
            path.unlink()
        save_shards(weights, folder, ".bin", "1GB")

    return change


_EXPERT = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
_FUSED = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(_edit_config(num_local_experts=8), "lacks a tensor", id="fewer experts"),
        pytest.param(_edit_config(num_local_experts=3), "does not describe", id="more experts"),
        pytest.param(_edit_config(num_local_experts=0), "num_local_experts", id="no expert"),
        pytest.param(_edit_config(num_experts_per_tok=5), "more experts than", id="too many used"),
        pytest.param(_edit_config(intermediate_size=64), "another shape", id="another size"),
        pytest.param(
            _edit_config(architectures=["PhimoeForCausalLM"]), "PhimoeForCausalLM", id="class"
        ),
        pytest.param(
            _edit_weights(lambda weights: weights.pop(_EXPERT)), _EXPERT, id="a missing expert"
        ),
        pytest.param(
            _edit_weights(lambda weights: weights.update({_FUSED: torch.ones(4, 192, 64)})),
            _FUSED,
            id="fused experts",
        ),
        pytest.param(_edit_config(model_type="qwen2_moe"), "'qwen2_moe'", id="Qwen2-MoE"),
    ],
)
def test_what_is_no_whole_mixtral_is_refused(
    change: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    base = make_mixtral(tmp_path / "base")
    change(base)
    whole = make_mixtral(tmp_path / "whole")
    lora = make_mixtral_adapter(tmp_path / "lora", whole, only="self_attn")
    with pytest.raises(LayoutError) as refused:
        _merge(base, lora, tmp_path / "out")
    assert told in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_window_that_llama_cpp_does_not_know_is_told(lora: Path, tmp_path: Path) -> None:
    base = make_mixtral(tmp_path / "base")
    _edit_config(sliding_window=64)(base)
    report = merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    assert "looks back 64 tokens (sliding_window)" in report.summary()


def test_added_tokens_of_tokenizer_json_alone_are_listed(lora: Path, tmp_path: Path) -> None:
    """The converter takes them from other files, and calls these rows padding."""
    base = make_mixtral(tmp_path / "base", vocab_size=104)
    write_tokenizer(base, 101)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    names = ["[甲]", "<tool>", "<|end|>"]
    added = [
        {**flags, "id": 101 + n, "content": name, "special": n == 0} for n, name in enumerate(names)
    ]
    pieces = {piece: id_ for id_, piece in enumerate(_list_pieces(base))}
    fast = {"model": {"type": "BPE", "vocab": pieces, "merges": []}, "added_tokens": added}
    (base / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    path = _merge(base, lora, tmp_path / "out") / "ggml-model-f16.gguf"
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.tokens"].contents()[101:] == names
    assert fields["tokenizer.ggml.token_type"].contents()[101:] == [3, 4, 3]


def _list_pieces(folder: Path) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [model.id_to_piece(id_) for id_ in range(model.get_piece_size())]
