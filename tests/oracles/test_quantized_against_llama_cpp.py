"""Quantized GGUF files, streamed, against ``llama_model_quantize`` run on the unquantized file.

The files must be the same bytes: keys, tensors, their order and types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.outtypes import FREE_OUTTYPES, GUIDED_OUTTYPES
from tests.kit.imatrices import CHUNKS, DATASET, TOKENS, make_factors, write_gguf
from tests.kit.llama_cpp import quantize
from tests.kit.llamas import make_base
from tests.kit.mixtrals import make_mixtral, make_mixtral_adapter

pytestmark = pytest.mark.slow
GGUFReader = pytest.importorskip("gguf", reason="needs the package gguf").GGUFReader

_WHOLE = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
MODELS: dict[str, dict[str, Any]] = {
    "wide": {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2},
    "narrow": {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 72},
    "tied": {"hidden_size": 256, "intermediate_size": 288, "tie_word_embeddings": True},
}


def _convert(base: Path, output: Path, outtype: str, **options: Any) -> Path:
    """One file under the same model name, which is a key of its own."""
    convert_checkpoint(
        base, output, output_type="gguf", outtype=outtype, model_name="tiny", **options
    )
    return output / f"ggml-model-{outtype}.gguf"


@pytest.mark.parametrize("dtype", _WHOLE, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_each_type_is_what_llama_cpp_makes_of_the_same_weights(
    tmp_path: Path, model: str, dtype: torch.dtype
) -> None:
    base = make_base(tmp_path / "base", dtype=dtype, num_hidden_layers=9, **MODELS[model])
    source = _convert(base, tmp_path / "whole", _WHOLE[dtype])
    is_first = (model, dtype) == ("wide", torch.float16)
    outtypes = FREE_OUTTYPES if is_first else ("q4_k_m", "q4_0")
    jobs = [
        {"source": source, "target": tmp_path / f"{one}.gguf", "file_type": one} for one in outtypes
    ]
    quantize(jobs)
    for job in jobs:
        ours = _convert(base, tmp_path / f"ours-{job['file_type']}", str(job["file_type"]))
        assert ours.read_bytes() == Path(job["target"]).read_bytes(), job["file_type"]


def _write_imatrix(folder: Path, source: Path) -> tuple[Path, dict[str, Any]]:
    """An importance matrix for the model of ``source``, and the same as llama.cpp's quantizer is
    given it: factors, and what the file is to say of them.
    """
    columns = {
        tensor.name: int(tensor.shape[0]) * (int(tensor.shape[2]) if "_exps" in tensor.name else 1)
        for tensor in GGUFReader(source).tensors
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight"
    }
    sums = make_factors(columns)
    imatrix = write_gguf(folder / "imatrix.gguf", sums)
    held = folder / "imatrix.npz"
    np.savez(held, **{name: values / np.float32(TOKENS) for name, values in sums.items()})
    keys = {
        "quantize.imatrix.file": imatrix.name,
        "quantize.imatrix.dataset": DATASET,
        "quantize.imatrix.entries_count": len(columns),
        "quantize.imatrix.chunks_count": CHUNKS,
    }
    return imatrix, {"source": source, "imatrix": held, "overrides": keys}


def test_an_importance_matrix_weighs_errors_as_in_llama_cpp(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 1}
    base = make_base(tmp_path / "base", num_hidden_layers=1, num_attention_heads=4, **sizes)
    source = _convert(base, tmp_path / "whole", "f16")
    imatrix, common = _write_imatrix(tmp_path, source)
    outtypes = ("q4_k_m", "q4_0", "q5_1", "q6_k", "iq4_xs", *GUIDED_OUTTYPES)
    quantize([common | {"target": tmp_path / f"{t}.gguf", "file_type": t} for t in outtypes])
    for outtype in outtypes:
        ours = _convert(base, tmp_path / f"ours-{outtype}", outtype, imatrix=imatrix)
        assert ours.read_bytes() == (tmp_path / f"{outtype}.gguf").read_bytes(), outtype


def _merge_mixtral(folder: Path, outtype: str, **options: Any) -> Path:
    output = folder / f"ours-{outtype}"
    settings = {"dtype": "float16", "model_name": "tiny", **options}
    base, lora = folder / "base", folder / "lora"
    merge_lora(base, lora, output, output_type="gguf", outtype=outtype, **settings)
    return output / f"ggml-model-{outtype}.gguf"


@pytest.mark.parametrize("experts", [4, 8])
def test_experts_are_quantized_as_by_llama_cpp(tmp_path: Path, experts: int) -> None:
    """llama.cpp has rules of its own for eight of them; routers stay whole."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3}
    base = make_mixtral(tmp_path / "base", num_local_experts=experts, **sizes)
    make_mixtral_adapter(tmp_path / "lora", base)
    source = _merge_mixtral(tmp_path, "f16")
    jobs = [
        {"source": source, "target": tmp_path / f"{one}.gguf", "file_type": one}
        for one in ("q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs")
    ]
    quantize(jobs)
    for job in jobs:
        ours = _merge_mixtral(tmp_path, str(job["file_type"]))
        assert ours.read_bytes() == Path(job["target"]).read_bytes(), job["file_type"]
        assert not verify_merge(ours.parent).faults


def test_an_importance_matrix_has_factors_for_each_expert(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    make_mixtral_adapter(tmp_path / "lora", make_mixtral(tmp_path / "base", **sizes))
    source = _merge_mixtral(tmp_path, "f16")
    imatrix, common = _write_imatrix(tmp_path, source)
    outtypes = ("q4_k_m", "iq2_xs")
    quantize([common | {"target": tmp_path / f"{t}.gguf", "file_type": t} for t in outtypes])
    for outtype in outtypes:
        ours = _merge_mixtral(tmp_path, outtype, imatrix=imatrix)
        assert ours.read_bytes() == (tmp_path / f"{outtype}.gguf").read_bytes(), outtype
