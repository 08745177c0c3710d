"""Weights in other tools' forms and names: named, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merge import merge_lora
from merge.errors import LayoutError
from tests.kit.models import base_tensors, save_adapter, save_base

NAMED = {
    "model.abcdef.enc": "XORed with LLaMA-7B",
    "zero_to_fp32.py": "zero_to_fp32.py . pytorch_model.bin",
    "global_step10": "zero_to_fp32.py",
    "pytorch_model_fsdp_0/__0_0.distcp": "format_utils",
    "model_world_size_4_rank_0.pt": "model_merger",
    "hf_model_0001_0.pt": "rename",
    "lit_model.pth": "litgpt",
    "model.pth": "rename it to pytorch_model.bin",
}


@pytest.mark.parametrize(("name", "told"), NAMED.items())
def test_weights_of_other_tools_are_named(tmp_path: Path, name: str, told: str) -> None:
    base = save_base(tmp_path / "base")
    (base / "pytorch_model.bin").unlink()
    path = base / name
    path.parent.mkdir(exist_ok=True)
    if name == "global_step10":
        path.mkdir()
    else:
        path.write_bytes(b"weights")
    with pytest.raises(LayoutError, match="in a form that is not read here") as caught:
        merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out")
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_names_of_tencentpretrain_are_told(tmp_path: Path) -> None:
    name = "encoder.transformer.0.self_attn.linear_layers.0.weight"
    for config in ({}, {"model_type": "mistral"}):
        base = save_base(tmp_path / "base", {name: torch.ones(4, 4)}, **config)
        with pytest.raises(LayoutError) as caught:
            merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out", output_type="hf")
        assert "TencentPretrain's names" in caught.value.facts["remedy"]


def test_renamed_as_told_weights_are_read(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "plain")
    (base / "pytorch_model.bin").rename(base / "pytorch_model-00001-of-00001.bin")
    merge_lora(base, tmp_path / "lora", tmp_path / "out")
    one, other = (tmp_path / name / "consolidated.00.pth" for name in ("plain", "out"))
    assert one.read_bytes() == other.read_bytes()


def test_rows_of_embeddings_and_head_are_told_with_their_files(tmp_path: Path) -> None:
    tensors = base_tensors()
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    base = save_base(tmp_path / "base", tensors)
    with pytest.raises(LayoutError, match="different numbers of rows") as caught:
        merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out")
    assert "40 rows in" in caught.value.facts["found"]
    assert "39 in" in caught.value.facts["found"]
    assert "vocab_size 40" in caught.value.facts["expected"]


def test_weights_beside_the_bases_own_are_named(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", name="model.safetensors")
    torch.save({"model.norm.weight": torch.ones(2)}, base / "pytorch_model.bin")
    torch.save({"step": torch.ones(2)}, base / "training_args.bin")
    report = merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out")
    assert "weight files of the base that are not read: pytorch_model.bin" in report.summary()
