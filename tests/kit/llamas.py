"""Tiny LLaMA bases made by transformers.

Every value is random, so a wrong permutation, axis, order or scaling shows in every tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.kit.files import save_shards
from tests.kit.tokenizer_models import write_tokenizer


def llama_config(**changes: Any) -> LlamaConfig:
    """Eight heads of eight, two layers, a vocabulary that no number of shards divides."""
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 101,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**settings | changes)


def make_base(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    container: str = ".bin",
    max_shard_size: int | str = 100_000,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a random base model with tokenizer, in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(**changes)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if "norm" in name:  # a model's are positive, a difference's are not
            parameter.data.abs_()
    model.config.dtype = dtype
    config.save_pretrained(folder)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_shards(state, folder, container, max_shard_size)
    write_tokenizer(folder, config.vocab_size)
    return folder
