"""Tiny Mixtrals made by transformers, with a SentencePiece tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

from tests.kit.files import load_weights, save_shards
from tests.kit.tokenizer_models import write_tokenizer


def mixtral_config(**changes: Any) -> MixtralConfig:
    """Eight heads in groups of four, two layers, four experts of which two are used."""
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 101,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    return MixtralConfig(**settings | changes)


def make_mixtral(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    container: str = ".bin",
    max_shard_size: int = 200_000,
    std: float = 0.5,
    **changes: Any,
) -> Path:
    """Write a random model in the order of the network, each expert by itself, as transformers
    saves it.
    """
    config = mixtral_config(**changes)
    torch.manual_seed(0)
    model = MixtralForCausalLM(config).to(dtype)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=std)
        if "norm" in name:
            parameter.data.abs_()
    folder.mkdir(parents=True, exist_ok=True)
    config.dtype = dtype
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(folder)
    save_shards(dict(_split_experts(model.state_dict())), folder, container, max_shard_size)
    write_tokenizer(folder, config.vocab_size)
    return folder


def make_mixtral_adapter(folder: Path, base: Path, std: float = 0.1, only: str = "") -> Path:
    """A LoRA like Chinese-Mixtral's: on attention, routers, and the three matrices of each expert;
    or ``only`` on modules with this in their names.

    Written by hand: transformers 5 keeps experts in one tensor, to which PEFT gives other names.
    """
    torch.manual_seed(1)
    tensors, targets = {}, set()
    for name, weight in load_weights(base).items():
        module = name.removesuffix(".weight")
        is_vocabulary = module in ("model.embed_tokens", "lm_head")
        if weight.dim() == 2 and not is_vocabulary and only in module:
            stem = f"base_model.model.{module}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, weight.shape[1]) * std
            tensors[f"{stem}.lora_B.weight"] = torch.randn(weight.shape[0], 4) * std
            targets.add(module.rpartition(".")[2])
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    described = {**settings, "target_modules": sorted(targets)}
    described["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def _split_experts(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Stacked experts under the names that both releases of transformers save: w1, w2, w3."""
    for name, tensor in state.items():
        block, _, kind = name.partition(".mlp.")
        if kind == "gate.weight":
            yield f"{block}.block_sparse_moe.gate.weight", tensor
        elif kind == "experts.gate_up_proj":
            down = state[f"{block}.mlp.experts.down_proj"]
            for number, (both, last) in enumerate(zip(tensor, down, strict=True)):
                gate, up = both.chunk(2)
                stem = f"{block}.block_sparse_moe.experts.{number}"
                for matrix, part in (("w1", gate), ("w2", last), ("w3", up)):
                    yield f"{stem}.{matrix}.weight", part.clone()
        elif not kind:
            yield name, tensor
