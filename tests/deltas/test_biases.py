"""Biases, on the one kind of base that has them, up to the merged tensors themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from merge.deltas.adapter import open_adapter
from merge.deltas.adapter_config import AdapterFolder
from merge.deltas.apply import apply_adapters
from merge.errors import AdapterError
from merge.formats import open_container
from merge.layouts.huggingface import open_base
from merge.layouts.model_folder import ModelFolder
from merge.tensors.lazy import Checkpoint
from tests.kit.adapters import make_lora, merge_with_peft
from tests.kit.llamas import make_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 101}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
BIASES: dict[str, dict[str, Any]] = {
    "trained biases: all": {"bias": "all"},
    "trained biases: lora_only": {"bias": "lora_only"},
    "bias of lora_B": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "bias of lora_B, rsLoRA": {
        "lora_bias": True,
        "use_rslora": True,
        "target_modules": ["k_proj"],
    },
}


def qwen2(folder: Path) -> Checkpoint:
    """A random Qwen2, whose q, k and v have biases, as transformers saves it."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if "norm" in name:
            parameter.data.abs_()
    model.save_pretrained(folder)
    tensors = open_container(folder / "model.safetensors")
    return Checkpoint(tensors, {"model_type": "qwen2", "tie_word_embeddings": False})


@pytest.mark.parametrize("settings", BIASES.values(), ids=BIASES)
def test_biases_merge_as_peft_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = qwen2(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", tmp_path / "base", **settings)
    merged = apply_adapters(base, [open_adapter(AdapterFolder(adapter))], torch.float32).tensors
    expected = merge_with_peft(tmp_path / "base", [adapter])
    assert merged.keys() == expected.keys()
    changed = 0
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor.read(), expected[name], rtol=1e-5, atol=1e-5, msg=name)
        if name.endswith(".bias"):
            changed += not torch.equal(tensor.read(), base.tensors[name].read())
    assert changed


def test_bias_that_the_base_does_not_have(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    qwen2(tmp_path / "qwen2")
    adapter = make_lora(tmp_path / "lora", tmp_path / "qwen2", bias="lora_only")
    with pytest.raises(AdapterError, match="bias that the base model does not have"):
        apply_adapters(open_base(ModelFolder(base)), [open_adapter(AdapterFolder(adapter))], None)
