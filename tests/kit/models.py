"""Tiny bases and adapters written by hand, in no time: for what is not about their arithmetic.

Everything is written by other people's software (torch, safetensors, sentencepiece's own message
class), so that a reader here is never tested on a writer of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.kit.files import Tensors, save_tensors, write_json
from tests.kit.tokenizer_models import tokenizer_model

# Rows of the tiny base, of a Chinese-LLaMA of it and of a Chinese-Alpaca: one token more, [PAD].
BASE_ROWS, LLAMA_ROWS, ALPACA_ROWS = 40, 56, 57
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 16, 24, 2, 4, 2
RANK, ALPHA = 2, 4
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
Q_PROJ = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Normal values, of a different kind for every seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).mul_(0.1).to(dtype)


def base_tensors(rows: int = BASE_ROWS, dtype: torch.dtype = torch.float16) -> Tensors:
    """A LLaMA's state dict in transformers' names."""
    tensors = {"model.embed_tokens.weight": random_tensor(rows, HIDDEN, seed=1)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for seed, (module, shape) in enumerate(LINEAR.items()):
            tensors[f"{prefix}.{module}.weight"] = random_tensor(*shape, seed=10 * layer + seed)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = random_tensor(HIDDEN, seed=90 + layer).abs()
    tensors["model.norm.weight"] = random_tensor(HIDDEN, seed=98).abs()
    tensors["lm_head.weight"] = random_tensor(rows, HIDDEN, seed=99)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def base_config(**fields: object) -> dict[str, Any]:
    """``config.json`` of the tiny base."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "vocab_size": BASE_ROWS,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config | fields


def adapter_tensors(rows: int | None = None, hidden: int = HIDDEN, seed: int = 500) -> Tensors:
    """A LoRA on q_proj of every layer; with ``rows``, whole embeddings and LM head too."""
    tensors: Tensors = {}
    if rows:
        tensors[f"{PREFIX}model.embed_tokens.weight"] = random_tensor(rows, hidden, seed=seed)
        tensors[f"{PREFIX}lm_head.weight"] = random_tensor(rows, hidden, seed=seed + 1)
    for layer in range(LAYERS):
        module = f"{PREFIX}model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = random_tensor(RANK, hidden, seed=seed + 2 + layer)
        tensors[f"{module}.lora_B.weight"] = random_tensor(hidden, RANK, seed=seed + 7 + layer)
    return tensors


def adapter_config(**fields: object) -> dict[str, Any]:
    """``adapter_config.json`` as PEFT 0.2 wrote it."""
    config = {
        "base_model_name_or_path": "decapoda-research/llama-7b-hf",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": ["embed_tokens", "lm_head"],
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    return config | fields


def save_base(
    folder: Path,
    tensors: Tensors | None = None,
    *,
    name: str = "pytorch_model.bin",
    pieces: int | None = BASE_ROWS,
    **config: object,
) -> Path:
    """Write a base folder: one weight file, config.json and (unless ``pieces`` is None) tokenizer.

    ``config`` replaces fields of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / name, base_tensors() if tensors is None else tensors)
    write_json(folder / "config.json", base_config(**config))
    if pieces:
        (folder / "tokenizer.model").write_bytes(tokenizer_model(pieces))
    return folder


def save_adapter(
    folder: Path,
    tensors: Tensors | None = None,
    *,
    name: str = "adapter_model.bin",
    pieces: int | None = None,
    **config: object,
) -> Path:
    """Write an adapter folder, with a tokenizer when ``pieces`` says how large.

    ``config`` replaces fields of adapter_config.json, which names the modules that are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_tensors() if tensors is None else tensors
    save_tensors(folder / name, tensors)
    sides = ("embed_tokens", "lm_head")
    saved = [side for side in sides if any(f"{side}.weight" in key for key in tensors)]
    targets = {key.partition(".lora_")[0].rpartition(".")[2] for key in tensors if ".lora_" in key}
    there = {"modules_to_save": saved or None, "target_modules": sorted(targets)}
    fields = adapter_config(**(there | config))
    write_json(folder / "adapter_config.json", fields)
    if pieces:
        (folder / "tokenizer.model").write_bytes(tokenizer_model(pieces))
    return folder
