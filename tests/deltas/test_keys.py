"""Every key of an adapter's file counts: one that is not understood or meets another is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora
from tests.kit.adapters import make_lora
from tests.kit.files import copied, load_weights
from tests.kit.refusals import refused_merge

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


STRAY = [
    "stray",
    "weight",
    "model.layers.0.self_attn.q_proj.lora_C.weight",
    "model.layers.0.self_attn.q_proj.lora_A",
    "model.layers.0.self_attn.q_proj.lora_A.default.extra.weight",
    "model.layers.0.self_attn.q_proj.lora_A.bias",
    "model.layers.0.self_attn.q_proj.lora_B.bias",
    "model.layers.0.self_attn.k_proj.lora_B.weight",
    "model.layers.0.self_attn.k_proj.lora_embedding_A",
    "model.embed_tokens.lora_embedding_A",
    "model.embed_tokens.lora_embedding_B.weight",
    "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
    "model.embed_tokens.token_adapter.trainable_tokens_delta",
    "model.embed_tokens.trainable_tokens_delta.default",
    "model.embed_tokens.token_adapter.trainable_tokens_original",
    "model.layers.0.self_attn.q_proj.modules_to_save.weight",
    "model.layers.0.self_attn.q_proj.base_layer.scales",
    "model.layers.0.self_attn.q_proj.base_layer.weight.absmax",
    "model.layers.0.self_attn.q_proj.base_layer.base_layer.weight",
    "model.layers.0.mlp.original_module.weight",
    "model.layers.0.mlp.modules_to_save.default.gate_proj.extra",
    "model.layers.9.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.qkv_proj.weight",
    "model.norm.weight.second",
    "score.weight",
]


@pytest.mark.parametrize("prefix", ["base_model.model.", ""], ids=["saved", "bare"])
@pytest.mark.parametrize("key", STRAY)
def test_no_key_is_dropped_silently(
    tmp_path: Path, base: Path, lora: Path, key: str, prefix: str
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    tensors = load_and_remove(adapter)
    tensors[prefix + key] = torch.ones(4, 4)
    torch.save(tensors, adapter / "adapter_model.bin")
    error = refused_merge(base, adapter, tmp_path / "out")
    assert bare(error.facts["tensor"]).startswith(bare(key)[:24])


EMBED, HEAD, Q = "model.embed_tokens", "lm_head", "model.layers.0.self_attn.q_proj"


ON_EMBED = {"target_modules": ["embed_tokens"], "save_embedding_layers": True}


TOKENS_THERE = {"trainable_token_indices": [1, 5], "save_embedding_layers": True}


SAVED = {"modules_to_save": ["lm_head"]}


# What PEFT made, keys that are put beside it with their shapes, and what the message names.
COLLISIONS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "two products of embeddings": (
        ON_EMBED,
        {f"{EMBED}.lora_A.weight": (4, 64), f"{EMBED}.lora_B.weight": (101, 4)},
        f"{EMBED}.lora_embedding_A",
    ),
    "two products of a layer": (
        {},
        {f"{Q}.lora_embedding_A": (4, 64), f"{Q}.lora_embedding_B": (64, 4)},
        f"{Q}.lora_embedding_A",
    ),
    "a product under trained rows": (
        TOKENS_THERE,
        {f"{EMBED}.lora_embedding_A": (4, 101), f"{EMBED}.lora_embedding_B": (64, 4)},
        f"{EMBED}.trainable_tokens_delta",
    ),
    "own copy and plain name": (
        ON_EMBED,
        {f"{EMBED}.weight": (101, 64)},
        f"{EMBED}.base_layer.weight and {EMBED}.weight",
    ),
    "own copy under trained rows and plain name": (
        TOKENS_THERE,
        {f"{EMBED}.weight": (101, 64)},
        f"{EMBED}.base_layer.weight and {EMBED}.weight",
    ),
    "own copy and trained copy": (
        ON_EMBED,
        {f"{EMBED}.modules_to_save.weight": (101, 64)},
        f"{EMBED}.lora_embedding_A",
    ),
    "trained copy under two names": (
        SAVED,
        {f"{HEAD}.modules_to_save.weight": (101, 64)},
        f"{HEAD}.weight and {HEAD}.modules_to_save.weight",
    ),
    "own copy of what was trained": (
        SAVED,
        {f"{HEAD}.base_layer.weight": (101, 64)},
        f"{HEAD}.base_layer.weight and {HEAD}.weight",
    ),
    "two biases of a layer": (
        {},
        {f"{Q}.bias": (64,), f"{Q}.base_layer.bias": (64,)},
        f"{Q}.bias",
    ),
    "trained whole, and a product": (
        SAVED,
        {f"{HEAD}.lora_A.weight": (4, 64), f"{HEAD}.lora_B.weight": (101, 4)},
        f"{HEAD}.lora_A",
    ),
    "untrained copy of a product's layer": (
        {},
        {f"{Q}.original_module.weight": (64, 64), f"{Q}.modules_to_save.weight": (64, 64)},
        f"{Q}.lora_A",
    ),
    "trained whole, and rows": (
        TOKENS_THERE,
        {f"{EMBED}.modules_to_save.weight": (101, 64)},
        f"{EMBED}.trainable_tokens_delta",
    ),
    "one name with and without the adapter's": (
        {},
        {f"{Q}.lora_A.default.weight": (4, 64)},
        f"base_model.model.{Q}.lora_A.default.weight",
    ),
}


@pytest.mark.parametrize(("settings", "added", "named"), COLLISIONS.values(), ids=COLLISIONS)
def test_of_two_keys_that_meet_none_is_dropped_silently(
    tmp_path: Path,
    base: Path,
    settings: dict[str, Any],
    added: dict[str, tuple[int, ...]],
    named: str,
) -> None:
    adapter = make_lora(tmp_path / "lora", base, **settings)
    tensors = load_and_remove(adapter)
    for seed, (key, shape) in enumerate(added.items()):
        torch.manual_seed(seed)
        tensors[f"base_model.model.{key}"] = torch.randn(shape)
    torch.save(tensors, adapter / "adapter_model.bin")
    assert refused_merge(base, adapter, tmp_path / "out").facts["tensor"] == named


def test_equal_copies_of_one_tensor_are_one(tmp_path: Path, base: Path) -> None:
    adapter = make_lora(tmp_path / "lora", base, **ON_EMBED)
    merge_lora(base, adapter, tmp_path / "one", output_type="huggingface")
    tensors = load_and_remove(adapter)
    own = tensors[f"base_model.model.{EMBED}.base_layer.weight"]
    tensors[f"base_model.model.{EMBED}.weight"] = own.clone()
    torch.save(tensors, adapter / "adapter_model.bin")
    merge_lora(base, adapter, tmp_path / "two", output_type="huggingface")
    one, two = load_weights(tmp_path / "one"), load_weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def bare(key: str) -> str:
    """A key without the words that PEFT wraps around a module's name."""
    for word in ("base_model.model.", "default.", "modules_to_save.", "token_adapter.", ".weight"):
        key = key.replace(word, "")
    return key


def load_and_remove(adapter: Path) -> dict[str, torch.Tensor]:
    tensors = load_weights(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    return tensors
