"""Results in blocks of few bits: right ones pass, and what is not checked is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.errors import FormatError
from merge.formats import ggml
from merge.layouts.opening import open_checkpoint
from merge.output.preflight import MANIFEST_NAME
from merge.verification.block_rows import FURTHEST_ROW, find_far_rows
from merge.verification.compare import compare_checkpoints
from merge.verification.loading import open_any
from tests.kit.adapters import make_adapter
from tests.kit.llama_cpp import skip_without_quantizer
from tests.kit.llamas import make_base
from tests.kit.spoiled_results import gguf_tensor

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture(scope="module", autouse=True)
def _quantizer() -> None:
    skip_without_quantizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
    return make_base(tmp_path_factory.mktemp("base"), **sizes)


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("lora"), base, rows=151)


def _merge(base: Path, lora: Path, output: Path, outtype: str, **options: Any) -> Path:
    merge_lora(base, lora, output, output_type="gguf", outtype=outtype, **options)
    return output


@pytest.mark.parametrize("outtype", ["q4_k_m", "q2_k", "q5_1", "iq4_xs"])
@pytest.mark.parametrize("with_manifest", [True, False], ids=["manifest", "inputs"])
def test_a_right_merge_passes_and_says_what_blocks_hide(
    tmp_path: Path, base: Path, lora: Path, outtype: str, with_manifest: bool
) -> None:
    output = _merge(base, lora, tmp_path / "out", outtype)
    if not with_manifest:
        (output / MANIFEST_NAME).unlink()
    inputs = {} if with_manifest else {"base_model": base, "lora_model": lora}
    found = verify_merge(output, **inputs)
    assert [str(fault) for fault in found.faults] == []
    assert any("single elements of 16 tensors" in line for line in found.unchecked)
    assert any("5 tensors, each element" in line for line in found.checked)
    assert any("16 tensors of" in line and "each row" in line for line in found.checked)


def _rotary_order(data: np.ndarray) -> None:
    pairs = data.reshape(8, 16, 2, -1)
    data[:] = pairs.transpose(0, 2, 1, 3).reshape(data.shape).copy()


def _zero_row(data: np.ndarray) -> None:
    data[3] = 0


@pytest.mark.parametrize("fault", [_rotary_order, _zero_row])
@pytest.mark.parametrize("outtype", ["q4_k_m", "q2_k"])
def test_wrong_rows_are_found_by_arithmetic(
    tmp_path: Path, base: Path, lora: Path, fault: Callable[[np.ndarray], None], outtype: str
) -> None:
    output = _merge(base, lora, tmp_path / "out", outtype)
    (output / MANIFEST_NAME).unlink()
    with gguf_tensor(output / f"ggml-model-{outtype}.gguf", "blk.0.attn_q.weight") as data:
        fault(data)
    faults = [str(f) for f in verify_merge(output, base_model=base, lora_model=lora).faults]
    assert any("not what its inputs make of it" in said and "attn_q" in said for said in faults)


def test_a_changed_bit_is_found_by_the_manifest(tmp_path: Path, base: Path, lora: Path) -> None:
    output = _merge(base, lora, tmp_path / "out", "q4_k_m")
    with gguf_tensor(output / "ggml-model-q4_k_m.gguf", "blk.1.ffn_up.weight") as data:
        data[7, 40] ^= 1
    faults = [str(fault) for fault in verify_merge(output).faults]
    assert any("other content than the merge wrote" in said for said in faults)
    assert not any("not what its inputs make of it" in said for said in faults)


@pytest.mark.parametrize("weight", [0.5, 1.5, -1.0])
def test_an_adapter_merged_with_another_weight_is_found(
    tmp_path: Path, base: Path, lora: Path, weight: float
) -> None:
    output = _merge(base, lora, tmp_path / "out", "q4_k_m", lora_weights=str(weight))
    (output / MANIFEST_NAME).unlink()
    faults = [str(f) for f in verify_merge(output, base_model=base, lora_model=lora).faults]
    assert any("times what the adapters add" in said for said in faults)


def test_two_files_in_blocks_are_compared_as_the_numbers_they_are(
    tmp_path: Path, base: Path
) -> None:
    for name, outtype in (("one", "q4_k_m"), ("two", "q4_k_m"), ("whole", "f32")):
        convert_checkpoint(base, tmp_path / name, output_type="gguf", outtype=outtype)
    one, two, whole = (open_any(tmp_path / name) for name in ("one", "two", "whole"))
    assert one.dtypes == "float32, q4_k, q6_k"
    assert not compare_checkpoints(one.tensors, two.tensors).differ()
    found = compare_checkpoints(one.tensors, whole.tensors)
    different = {tensor.name for tensor in found.compared if tensor.differing}
    assert different == {name for name, tensor in one.tensors.items() if len(tensor.shape) > 1}


def test_such_a_file_is_no_base(tmp_path: Path, base: Path) -> None:
    convert_checkpoint(base, tmp_path / "q", output_type="gguf", outtype="q6_k")
    with pytest.raises(FormatError, match="type that is not supported") as caught:
        open_checkpoint(tmp_path / "q")
    assert "Q6_K" in caught.value.facts["found"]


@pytest.mark.parametrize("kind", [kind for kind in FURTHEST_ROW if not kind.startswith("IQ1")])
def test_rows_of_a_models_weights_are_near_and_others_far(kind: str) -> None:
    """With heavy tails, and an importance matrix of very different factors."""
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(4, 512, generator=generator)
    spread = torch.randn(512, generator=generator).exp_()
    for rows, factors in ((gauss, torch.ones(512)), (gauss * spread, spread), (gauss**3, spread)):
        blocks = torch.zeros((4, ggml.count_row_bytes(kind, 512)), dtype=torch.uint8)
        ggml.quantize_rows(kind, rows, blocks, factors, "rows")
        read = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])
        found, none = torch.from_numpy(read).double(), torch.zeros(4, 512)
        assert not find_far_rows(kind, found, rows.double(), none).any()
        assert find_far_rows(kind, found.roll(1, 0), rows.double(), none).all()
        assert find_far_rows(kind, torch.zeros_like(found), rows.double(), none).all()
