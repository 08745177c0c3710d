"""Tiny models under the names that the README and the recipes use."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.kit import meta_models
from tests.kit.dense_deltas import padded
from tests.kit.files import Tensors, load_weights, save_shards
from tests.kit.llama3_models import make_llama3
from tests.kit.models import adapter_tensors, base_tensors, random_tensor, save_adapter, save_base
from tests.kit.tokenizer_models import TEXT
from tokenizer_tools.extend import extend, select_text_pieces

WEIGHTS = "pytorch_model-00001-of-00001.bin"
_PLUS = ("chinese-llama-plus-lora-7b", "chinese-alpaca-plus-lora-7b")


def make_named_models(folder: Path, llama: ModelProto, chinese: ModelProto) -> Path:
    """Bases, adapters, a delta and a corpus, with tokenizers of SentencePiece's own making."""
    pieces = len(llama.pieces)
    grown = extend(llama, select_text_pieces(chinese)).model
    padded_model = extend(grown, [], "[PAD]").model
    for number, name in enumerate(("llama-7b-hf", "llama-2-7b-hf", "model-a")):
        tensors = base_tensors(pieces)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].abs() + 0.1 * (number + 1)
        save_base(folder / name, tensors, name=WEIGHTS, pieces=None, vocab_size=pieces)
        _write_tokenizer(folder / name, llama)
    (folder / "model-b").symlink_to("model-a", target_is_directory=True)
    for name, model in (
        (_PLUS[0], grown),
        (_PLUS[1], padded_model),
        ("chinese-alpaca-lora-7b", padded_model),
        ("chinese-alpaca-2-lora-7b", grown),
    ):
        save_adapter(folder / name, adapter_tensors(len(model.pieces)))
        _write_tokenizer(folder / name, model)
    for name in ("my-lora", "adapters/first", "adapters/second", "adapters/third"):
        save_adapter(folder / name, adapter_tensors())
    _save_delta(folder / "vicuna-7b-delta-v0", folder / "llama-7b-hf", pieces, llama)
    text = TEXT.read_text(encoding="utf-8")
    (folder / "sample.txt").write_text(text, encoding="utf-8")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "text.txt").write_text(text, encoding="utf-8")
    return folder


def add_llama3(folder: Path, real_data: Path) -> None:
    """Add Llama 3 in Meta's layout and two adapters of its, with Meta's published tokenizer."""
    make_llama3(folder / "Meta-Llama-3-8B", real_data)
    for name in ("llama-3-chinese-8b-lora", "llama-3-chinese-8b-instruct-lora"):
        tensors: Tensors = {}
        for layer in range(meta_models.LAYERS):
            key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{{}}.weight"
            tensors[key.format("A")] = random_tensor(2, meta_models.DIM, seed=2 * layer)
            tensors[key.format("B")] = random_tensor(meta_models.DIM, 2, seed=2 * layer + 1)
        save_adapter(folder / name, tensors)


def _write_tokenizer(folder: Path, model: ModelProto) -> None:
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def _save_delta(folder: Path, base: Path, pieces: int, llama: ModelProto) -> None:
    """A delta with one row more than the base, of which nothing was subtracted."""
    tensors: Tensors = {}
    for number, (name, tensor) in enumerate(load_weights(base).items()):
        rows = len(tensor) + (name in ("model.embed_tokens.weight", "lm_head.weight"))
        noise = random_tensor(rows, *tensor.shape[1:], seed=number, dtype=torch.float32)
        tensors[name] = (padded(torch.zeros_like(tensor), rows).float() + 0.01 * noise).half()
    folder.mkdir()
    save_shards(tensors, folder, max_shard_size=100_000)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = pieces + 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_tokenizer(folder, llama)
    added = json.dumps({"[PAD]": pieces})
    (folder / "added_tokens.json").write_text(added, encoding="utf-8")
