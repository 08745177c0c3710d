"""A merge in GGUF is found right, quantised too, and a fault in it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.output.preflight import MANIFEST_NAME
from tests.kit.llamas import make_base
from tests.kit.spoiled_results import gguf_tensor

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


OUTPUTS: dict[str, dict[str, Any]] = {
    "f16": {"outtype": "f16"},
    "f32": {"outtype": "f32"},
    "bf16": {"outtype": "bf16"},
    "q8_0": {"outtype": "q8_0"},
    "f32 of float16": {"outtype": "f32", "dtype": "float16"},
    "q8_0 of float16": {"outtype": "q8_0", "dtype": "float16"},
    "split": {"outtype": "q8_0", "split_max_size": "40kB"},
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_merge_into_gguf_is_right(tmp_path: Path, base: Path, adapter: Path, output: str) -> None:
    merge_lora(base, adapter, tmp_path / "out", output_type="gguf", **OUTPUTS[output])
    found = verify_merge(tmp_path / "out")
    assert [str(fault) for fault in found.faults] == []
    assert not found.unchecked
    assert any("21 tensors, each element" in line for line in found.checked)


def test_a_conversion_from_float32_is_right(tmp_path: Path) -> None:
    model = make_base(tmp_path / "model", dtype=torch.float32)
    convert_checkpoint(model, tmp_path / "out", output_type="gguf", outtype="q8_0")
    assert [str(fault) for fault in verify_merge(tmp_path / "out").faults] == []


def _one_step(data: np.ndarray) -> None:
    """One element of a block, two steps off: less than any digit of a sum would show."""
    values = data.reshape(-1, 34)[3, 2:].view(np.int8)
    values[5] += 2 if values[5] < 0 else -2


def _rotary_order(data: np.ndarray) -> None:
    """The rows of each head as Hugging Face has them."""
    pairs = data.reshape(8, 4, 2, -1)
    data[:] = pairs.transpose(0, 2, 1, 3).reshape(data.shape).copy()


def _scale(data: np.ndarray) -> None:
    scales = data.reshape(-1, 34)[:, :2].copy().view(np.float16) * np.float16(1.01)
    data.reshape(-1, 34)[:, :2] = scales.view(np.uint8)


@pytest.mark.parametrize(
    ("fault", "tensor"),
    [
        (_one_step, "blk.1.ffn_up.weight"),
        (_rotary_order, "blk.0.attn_q.weight"),
        (_scale, "output.weight"),
    ],
)
@pytest.mark.parametrize("with_manifest", [True, False], ids=["by-digest", "by-arithmetic"])
def test_a_fault_in_quantised_weights_is_found(
    tmp_path: Path,
    base: Path,
    adapter: Path,
    fault: Callable[[np.ndarray], None],
    tensor: str,
    with_manifest: bool,
) -> None:
    merge_lora(base, adapter, tmp_path / "out", output_type="gguf", outtype="q8_0")
    if not with_manifest:
        (tmp_path / "out" / MANIFEST_NAME).unlink()
    inputs = {} if with_manifest else {"base_model": base, "lora_model": adapter}
    assert not verify_merge(tmp_path / "out", **inputs).faults
    with gguf_tensor(tmp_path / "out" / "ggml-model-q8_0.gguf", tensor) as data:
        fault(data)
    faults = [str(found) for found in verify_merge(tmp_path / "out", **inputs).faults]
    assert any("not what its inputs make of it" in said and tensor in said for said in faults)
    assert any("other content than the merge wrote" in said for said in faults) == with_manifest


def test_another_token_is_found(tmp_path: Path, base: Path, adapter: Path) -> None:
    merge_lora(base, adapter, tmp_path / "out", output_type="gguf")
    path = tmp_path / "out" / "ggml-model-f16.gguf"
    data = path.read_bytes()
    assert data.count(b"piece77") == 1
    path.write_bytes(data.replace(b"piece77", b"other77"))
    faults = [str(fault) for fault in verify_merge(tmp_path / "out").faults]
    assert any("'piece77' as token 80" in said and "other77" in said for said in faults)
