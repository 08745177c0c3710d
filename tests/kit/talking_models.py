"""Tiny models that say what a test wants, so that an answer is known without a library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.kit.llamas import llama_config

_HIDDEN = 64


def byte_ids(model: ModelProto, text: str) -> list[int]:
    """The tokens of single bytes that spell ``text``."""
    pieces = SentencePieceProcessor(model_proto=model.SerializeToString())
    return [int(pieces.piece_to_id(f"<0x{byte:02X}>")) for byte in text.encode()]


def make_reciting(
    folder: Path, tokenizer: ModelProto, chain: Sequence[int], **changes: Any
) -> Path:
    """Write a model after whose each token of ``chain`` the next one is likeliest by far.

    A token may be in the chain once, except that the last may lead back to an earlier one.
    Attention and MLP add nothing, so nothing before the last token matters.
    """
    rows = len(tokenizer.pieces)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"vocab_size": rows, "num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": 2}
    config = llama_config(**{**settings, "max_position_embeddings": 4096, **changes})
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    torch.manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(rows, _HIDDEN),
        "model.norm.weight": torch.ones(_HIDDEN),
        "lm_head.weight": torch.zeros(rows, _HIDDEN),
    }
    for here, after in pairwise(chain):
        tensors["lm_head.weight"][after] += tensors["model.embed_tokens.weight"][here]
    layer = "model.layers.0"
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{layer}.{name}.weight"] = torch.ones(_HIDDEN)
    for name in "qkvo":
        tensors[f"{layer}.self_attn.{name}_proj.weight"] = torch.zeros(_HIDDEN, _HIDDEN)
    inner = config.intermediate_size
    tensors[f"{layer}.mlp.gate_proj.weight"] = torch.zeros(inner, _HIDDEN)
    tensors[f"{layer}.mlp.up_proj.weight"] = torch.zeros(inner, _HIDDEN)
    tensors[f"{layer}.mlp.down_proj.weight"] = torch.zeros(_HIDDEN, inner)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.model").write_bytes(tokenizer.SerializeToString())
    return folder


def set_template(folder: Path, template: str) -> Path:
    """Let the tokenizer of a folder have a chat template of its own."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    config |= {"tokenizer_class": "LlamaTokenizer", "chat_template": template}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder
