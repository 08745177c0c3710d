"""Chinese-Mixtral: a LoRA on attention, router and single experts, onto Mixtral's own files.

transformers 5 keeps a layer's experts in one tensor, and transformers 4 one module each; Mixtral's
files and its adapters have the names of the latter. So the oracle's model is made of plain
``torch.nn.Linear`` with those names, and PEFT puts the LoRA on that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from merge.errors import MergeError
from merge.jobs.merge_lora import merge_lora
from merge.jobs.verify_merge import verify_merge
from tests.kit.files import Tensors, load_weights
from tests.kit.tokenizer_models import write_tokenizer
from tests.kit.transformers_446 import needs_transformers_446, run_in_transformers_446

WIDE, NARROW, KV, EXPERTS, LAYERS, ROWS = 32, 48, 16, 4, 2, 320
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"]
CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": WIDE,
    "intermediate_size": NARROW,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LOGITS = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
with torch.no_grad():
    print(json.dumps(model(torch.tensor([[1, 5, 9, 100, 33, 77, 2]])).logits.tolist()))
"""


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDE))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (
            linear(NARROW, WIDE),
            linear(WIDE, NARROW),
            linear(NARROW, WIDE),
        )


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = linear(EXPERTS, WIDE)
        self.experts = nn.ModuleList([Expert() for _ in range(EXPERTS)])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = linear(WIDE, WIDE), linear(WIDE, WIDE)
        self.k_proj, self.v_proj = linear(KV, WIDE), linear(KV, WIDE)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.block_sparse_moe = Attention(), Experts()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()


class Body(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(rows, WIDE)
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
        self.norm = Norm()


class Mixtral(nn.Module):
    """Mixtral's weights under the names of its files."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.model, self.lm_head = Body(rows), linear(rows, WIDE)


def make_base(folder: Path, rows: int = ROWS) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    weights = {name: tensor.clone() for name, tensor in Mixtral(rows).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**CONFIG, "vocab_size": rows})
    (folder / "config.json").write_text(text, encoding="utf-8")
    write_tokenizer(folder, rows)
    return folder


def train(base: Path, folder: Path, rows: int = ROWS, **settings: Any) -> Tensors:
    """Save an adapter of random values with PEFT; return what PEFT merges of it."""
    model = Mixtral(rows)
    weights = load_weights(base)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.randn(rows - ROWS, WIDE)])
    model.load_state_dict(weights)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": TARGETS} | settings))  # type: ignore[arg-type]
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    return {name: t.detach().clone() for name, t in adapted.merge_and_unload().state_dict().items()}


def require_merged(out: Path, expected: Tensors) -> None:
    found = load_weights(out)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@needs_transformers_446
def test_lora_on_experts_merges_as_peft_does(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    expected = train(base, tmp_path / "lora", **saved)
    names = load_weights(tmp_path / "lora")
    assert any(".block_sparse_moe.experts.3.w2.lora_A.weight" in name for name in names)
    out = tmp_path / "out"
    merge_lora(base, tmp_path / "lora", out, output_type="huggingface", dtype="float32")
    require_merged(out, expected)
    assert not verify_merge(out).faults
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)  # fuses the experts
    with torch.no_grad():
        ours = model(torch.tensor([[1, 5, 9, 100, 33, 77, 2]])).logits
    theirs = torch.tensor(run_in_transformers_446(LOGITS, out))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_grown_vocabulary_comes_with_the_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    expected = train(base, tmp_path / "lora", rows=ROWS + 40, **saved)
    write_tokenizer(tmp_path / "lora", ROWS + 40)
    out = tmp_path / "out"
    merge_lora(base, tmp_path / "lora", out, output_type="huggingface", dtype="float32")
    require_merged(out, expected)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == ROWS + 40
    tokenizer = (tmp_path / "lora" / "tokenizer.model").read_bytes()
    assert (out / "tokenizer.model").read_bytes() == tokenizer
    assert not verify_merge(out).faults


def test_adapter_for_more_experts_is_refused_by_name(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    train(base, tmp_path / "lora")
    weights = {n: t for n, t in load_weights(base).items() if ".experts.3." not in n}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"experts\.3\."):
        merge_lora(base, tmp_path / "lora", tmp_path / "out", output_type="huggingface")
    assert not (tmp_path / "out").exists()


def test_metas_layout_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    train(base, tmp_path / "lora")
    with pytest.raises(MergeError, match="no LLaMA"):
        merge_lora(base, tmp_path / "lora", tmp_path / "out", output_type="pth")
