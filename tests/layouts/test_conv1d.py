"""GPT-2 keeps its matrices transposed (Conv1D), so what is added must be turned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from merge.deltas.adapter import open_adapter
from merge.deltas.adapter_config import AdapterFolder
from merge.deltas.apply import apply_adapters
from merge.formats import open_container
from merge.tensors.lazy import Checkpoint
from tests.kit.adapters import make_lora, merge_with_peft

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_conv1d_merges_as_peft_does(tmp_path: Path, dora: bool) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=101, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": dora}
    adapter = make_lora(tmp_path / "lora", tmp_path / "base", **settings)
    base = Checkpoint(open_container(tmp_path / "base/model.safetensors"), {"model_type": "gpt2"})
    merged = apply_adapters(base, [open_adapter(AdapterFolder(adapter))], torch.float32)
    expected = merge_with_peft(tmp_path / "base", [adapter])
    assert sum(bool(steps) for steps in merged.steps.values()) == 6
    for name, tensor in merged.tensors.items():
        torch.testing.assert_close(tensor.read(), expected[name], rtol=1e-5, atol=1e-5, msg=name)
