"""BOFT: any number of butterfly factors, and no compiler asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import merge_lora, verify_merge
from tests.kit.files import load_weights
from tests.kit.llamas import make_base
from tests.kit.peft_methods import make_method, merge_method_with_peft

BLOCK, FACTORS = 4, 3
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("boft") / "base", intermediate_size=96)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of torch's compiler of extensions, which fails."""
    calls: list[Any] = []

    def compile_nothing(*args: Any, **options: Any) -> None:
        calls.append((args, options))
        raise OSError("no compiler")

    monkeypatch.setattr("torch.utils.cpp_extension.load", compile_nothing)
    return calls


def interleave(size: int, blocks: int) -> torch.Tensor:
    """In each of ``blocks``, half blocks of BLOCK / 2 rows: those of even number, then the odd."""
    halves = torch.arange(size).view(blocks, -1, 2, BLOCK // 2)
    return halves.transpose(1, 2).reshape(-1)


def multiply_factors(r: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix of skew parameters ``(factors, blocks, BLOCK, BLOCK)``, in float64."""
    count, blocks = r.shape[:2]
    size = blocks * BLOCK
    whole = torch.eye(size, dtype=torch.float64)
    for i, one in enumerate(r.double()):
        skew = (one - one.transpose(1, 2)) / 2
        eye = torch.eye(BLOCK, dtype=torch.float64)
        rotations = (eye - skew) @ torch.linalg.inv(eye + skew)
        order = interleave(size, blocks >> i) if count > 1 else torch.arange(size)
        whole = torch.block_diag(*rotations)[order][:, order] @ whole
    return whole


def test_several_factors_as_a_gpu_trains_them(
    tmp_path: Path, base: Path, compilations: list[Any]
) -> None:
    """PEFT without its extension cannot load these."""
    adapter = make_method(
        tmp_path / "adapter", base, "BOFT", boft_block_size=BLOCK, boft_n_butterfly_factor=FACTORS
    )
    path = adapter / "adapter_model.safetensors"
    torch.manual_seed(5)
    tensors = {
        key: torch.randn(FACTORS, *tensor.shape[1:]) * 0.2 if key.endswith("boft_R") else tensor
        for key, tensor in load_file(path).items()
    }
    save_file(tensors, path)
    compilations.clear()
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert not verify_merge(tmp_path / "out", base_model=base, lora_model=adapter).faults
    assert not compilations
    found, plain = load_weights(tmp_path / "out"), load_weights(base)
    changed = {key.removeprefix(PREFIX).rpartition(".")[0] for key in tensors}
    assert len(changed) >= 4
    for module in changed:
        scale = tensors[f"{PREFIX}{module}.boft_s"].double()
        turned = multiply_factors(tensors[f"{PREFIX}{module}.boft_R"])
        expected = plain[f"{module}.weight"].double() @ turned.T * scale
        torch.testing.assert_close(
            found[f"{module}.weight"].double(), expected, rtol=2**-11, atol=2**-13
        )
        assert not torch.equal(found[f"{module}.weight"], plain[f"{module}.weight"])


def test_factors_that_a_cpu_has_left_out(
    tmp_path: Path, base: Path, compilations: list[Any]
) -> None:
    """PEFT without its extension trains one, and writes the number that was asked for."""
    adapter = make_method(
        tmp_path / "adapter", base, "BOFT", boft_block_size=BLOCK, boft_n_butterfly_factor=2
    )
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["boft_n_butterfly_factor"] == 2
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    compilations.clear()
    merge_lora(base, adapter, tmp_path / "again", output_type="huggingface")
    assert not compilations
    expected = merge_method_with_peft(base, adapter, torch.float16)
    assert compilations, "outside of a merge, PEFT is as it was"
    found = load_weights(tmp_path / "out")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
