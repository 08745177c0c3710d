"""Folders for llama.cpp's converters, each a good one broken in one way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from merge.jobs.convert_checkpoint import convert_checkpoint
from tests.support import (
    base_config,
    base_tensors,
    random_tensor,
    save_base,
    save_tensors,
    tokenizer_model,
    write_json,
)

ROWS = 41  # of which one file of two gets one more
FIRST, SECOND = "consolidated.00.pth", "consolidated.01.pth"
WQ = "layers.0.attention.wq.weight"
BIN, Q_PROJ = "pytorch_model.bin", "model.layers.0.self_attn.q_proj.weight"
CONFIG, PARAMS, ADDED = "config.json", "params.json", "added_tokens.json"
GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
LAST = {chr(0x4E00 + ROWS - 1): ROWS - 1}  # the tokenizer's last piece
Break = Callable[[Path], object]


class Case(NamedTuple):
    """A folder that differs from a good one, and what the converter makes of it."""

    kind: str
    outcome: str
    make: Break


def _change(name: str, change: Callable[[dict[str, Any]], object], **options: Any) -> Break:
    """Load a file of tensors, change the mapping, save what ``change`` returns or the mapping."""

    def make(folder: Path) -> None:
        tensors = torch.load(folder / name, weights_only=True)
        changed = change(tensors)
        torch.save(tensors if changed is None else changed, folder / name, **options)

    return make


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def edit(name: str, **fields: object) -> Break:
    """Set fields of a JSON file; None takes one away."""

    def make(folder: Path) -> None:
        path = folder / name
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kept = {key: item for key, item in (value | fields).items() if item is not None}
        write_json(path, kept)

    return make


def _all(*breaks: Break) -> Break:
    return lambda folder: [make(folder) for make in breaks]


def _remove(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def _rename(old: str, new: str) -> Break:
    return lambda folder: (folder / old).rename(folder / new)


def tokenizer(pieces: int) -> Break:
    return lambda folder: (folder / "tokenizer.model").write_bytes(tokenizer_model(pieces))


def _tokenizer_above(folder: Path) -> None:
    shutil.move(folder / "tokenizer.model", folder.parent)


def _in_float32(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.float() for name, tensor in tensors.items()}


def _set(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    file = FIRST if name == WQ else BIN

    def one(tensors: dict[str, Any]) -> None:
        tensors[name] = change(tensors[name])

    return _change(file, one)


def _views(tensors: dict[str, torch.Tensor]) -> None:
    """Let two matrices be the halves of one storage, row by row."""
    names = [name for name in tensors if name.endswith((".wq.weight", ".wo.weight"))]
    whole = torch.cat([tensors[name] for name in names])
    for name, part in zip(names, whole.split([tensors[n].shape[0] for n in names]), strict=True):
        tensors[name] = part


def _without_checksums(folder: Path) -> None:
    tensors = torch.load(folder / FIRST, weights_only=True)
    with torch.serialization.skip_data():
        torch.save(tensors, folder / FIRST)


def _add_huggingface(folder: Path) -> None:
    save_tensors(folder / "model.safetensors", base_tensors(ROWS, dtype=torch.float32))
    write_json(folder / CONFIG, base_config(vocab_size=ROWS, max_position_embeddings=64))


def _rows_as_llama_3(folder: Path) -> None:
    """Split the embeddings by rows, which only Llama 3 does."""
    halves = [torch.load(folder / name, weights_only=True) for name in (FIRST, SECOND)]
    whole = torch.cat([half["tok_embeddings.weight"] for half in halves], 1)
    for half, name, part in zip(halves, (FIRST, SECOND), whole.chunk(2), strict=True):
        half["tok_embeddings.weight"] = part.clone()
        torch.save(half, folder / name)


def _indexed(**names: str) -> Break:
    def make(folder: Path) -> None:
        tensors = torch.load(folder / BIN, weights_only=True)
        weight_map = dict.fromkeys(tensors, BIN) | names
        write_json(folder / f"{BIN}.index.json", {"weight_map": weight_map})

    return make


def _halved(folder: Path) -> None:
    """The first of two numbered files, without an index and without the second."""
    tensors = torch.load(folder / BIN, weights_only=True)
    half = dict(list(tensors.items())[: len(tensors) // 2])
    torch.save(half, folder / "pytorch_model-00001-of-00002.bin")
    (folder / BIN).unlink()


def biases(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same with a bias for every linear layer of attention."""
    linear = [name for name in tensors if "self_attn" in name]
    return tensors | {
        name.replace("weight", "bias"): random_tensor(len(tensors[name])) for name in linear
    }


def change_weights(change: Callable[[dict[str, Any]], object]) -> Break:
    """Change the mapping in the one file of weights of a Hugging Face folder."""
    return _change(BIN, change)


def _scaled(**scaling: object) -> Break:
    return edit(CONFIG, rope_scaling=scaling)


def _nothing(folder: Path) -> None:
    """The good folder."""


OTHER_CONFIG = base_config(vocab_size=ROWS + 1, max_position_embeddings=64)
OLD = {"_use_new_zipfile_serialization": False}
CASES = {
    "one shard": Case("meta1", "right", _nothing),
    "two shards": Case("meta2", "right", _nothing),
    "another name": Case("meta1", "stops", _rename(FIRST, "model.00.pth")),
    "two kinds": Case("meta1", "stops", lambda d: save_tensors(d / BIN, base_tensors(ROWS))),
    "safetensors beside": Case("meta1", "silent", _add_huggingface),
    "before torch 1.6": Case("meta1", "stops", _change(FIRST, lambda t: None, **OLD)),
    "parameters": Case("meta1", "stops", _set(WQ, torch.nn.Parameter)),
    "float64": Case("meta1", "stops", _set(WQ, torch.Tensor.double)),
    "transposed": Case("meta1", "stops", _set(WQ, torch.Tensor.t)),
    "columns of a wider one": Case(
        "meta1", "stops", _set(WQ, lambda t: torch.cat([t, t], 1)[:, :16])
    ),
    "views of rows": Case("meta1", "right", _change(FIRST, _views)),
    "no checksums": Case("meta1", "stops", _without_checksums),
    "wrapped as model": Case("meta1", "right", _change(FIRST, lambda t: {"model": t})),
    "wrapped as state_dict": Case("meta1", "stops", _change(FIRST, lambda t: {"state_dict": t})),
    "rope.freqs": Case(
        "meta1", "right", _change(FIRST, lambda t: t | {"rope.freqs": torch.ones(2)})
    ),
    "a tensor too many": Case("meta1", "stops", _change(FIRST, lambda t: t | {"x.weight": t[WQ]})),
    "no LM head": Case("meta1", "silent", _change(FIRST, _without("output.weight"))),
    "name missing in a shard": Case("meta2", "stops", _change(SECOND, _without(WQ))),
    "second shard missing": Case("meta2", "silent", _remove(SECOND)),
    "gap": Case("meta2", "silent", _rename(SECOND, "consolidated.02.pth")),
    "other dtype in a shard": Case("meta2", "stops", _change(SECOND, _in_float32)),
    "split as Llama 3": Case("meta2", "stops", _rows_as_llama_3),
    "no params.json": Case("meta1", "stops", _remove(PARAMS)),
    "no norm_eps": Case("meta1", "stops", edit(PARAMS, norm_eps=None)),
    "vocab_size -1": Case("meta1", "right", edit(PARAMS, vocab_size=-1)),
    "too many layers": Case("meta1", "silent", edit(PARAMS, n_layers=3)),
    "too few layers": Case("meta1", "stops", edit(PARAMS, n_layers=1)),
    "config.json with other size": Case("meta1", "stops", edit(CONFIG, **OTHER_CONFIG)),
    "no tokenizer": Case("meta1", "stops", _remove("tokenizer.model")),
    "tokenizer above": Case("meta1", "right", _tokenizer_above),
    "tokenizer too small": Case("meta1", "stops", tokenizer(ROWS - 1)),
    "tokenizer too large": Case("meta1", "stops", tokenizer(ROWS + 1)),
    "added token": Case("meta1", "right", _all(tokenizer(ROWS - 1), edit(ADDED, **LAST))),
    "added token with a gap": Case(
        "meta1", "stops", _all(tokenizer(ROWS - 2), edit(ADDED, a=ROWS - 1))
    ),
    "bin": Case("hf", "right", _nothing),
    "leftovers": Case("hf", "right", _change(BIN, lambda t: t | {INV_FREQ: torch.ones(2)})),
    "bin before torch 1.6": Case("hf", "stops", _change(BIN, lambda t: None, **OLD)),
    "no config.json": Case("hf", "stops", _remove(CONFIG)),
    "no architecture": Case("hf", "stops", edit(CONFIG, architectures=None)),
    "another architecture": Case("hf", "stops", edit(CONFIG, architectures=["LlamaForX"])),
    "no tokenizer.model": Case("hf", "stops", _remove("tokenizer.model")),
    "vocab_size too small": Case("hf", "silent", edit(CONFIG, vocab_size=ROWS - 1)),
    "vocab_size too large": Case("hf", "silent", edit(CONFIG, vocab_size=ROWS + 1)),
    "a piece missing": Case("hf", "silent", tokenizer(ROWS - 1)),
    "that piece added": Case("hf", "right", _all(tokenizer(ROWS - 1), edit(ADDED, **LAST))),
    "a piece too many": Case("hf", "silent", tokenizer(ROWS + 1)),
    "added beyond": Case("hf", "silent", edit(ADDED, **{"<pad>": ROWS})),
    "a piece renamed": Case("hf", "silent", edit(ADDED, **{"<pad>": 7})),
    "ids of early conversions": Case("hf", "silent", edit(CONFIG, bos_token_id=0, eos_token_id=1)),
    "index": Case("hf", "right", _indexed()),
    "index with a name more": Case("hf", "stops", _indexed(**{"x.weight": BIN})),
    "index of a missing file": Case("hf", "stops", _indexed(**{Q_PROJ: "pytorch_model-2.bin"})),
    "second file missing": Case("hf", "silent", _halved),
    "an unknown tensor": Case(
        "hf", "stops", _change(BIN, lambda t: t | {"x.weight": random_tensor(2, 2)})
    ),
    "no LM head ": Case("hf", "silent", _change(BIN, _without("lm_head.weight"))),
    "quantised": Case("hf", "silent", _set(Q_PROJ, lambda t: t.mul(100).to(torch.int8))),
    "a layer too many": Case("hf", "silent", edit(CONFIG, num_hidden_layers=3)),
    "a layer too few": Case("hf", "stops", edit(CONFIG, num_hidden_layers=1)),
    "another file name": Case("hf", "silent", _rename(BIN, "weights.bin")),
    "length as float": Case("hf", "stops", edit(CONFIG, max_position_embeddings=64.0)),
    "length as text": Case("hf", "stops", edit(CONFIG, max_position_embeddings="64")),
    "negative length": Case("hf", "stops", edit(CONFIG, max_position_embeddings=-5)),
    "epsilon as text": Case("hf", "stops", edit(CONFIG, rms_norm_eps="1e-6")),
    "negative pad": Case("hf", "stops", edit(CONFIG, pad_token_id=-1)),
    "heads of odd size": Case(
        "hf", "stops", edit(CONFIG, num_attention_heads=3, num_key_value_heads=3)
    ),
    "class of Mixtral": Case("hf", "right", edit(CONFIG, architectures=["MixtralForCausalLM"])),
    "scaling that is text": Case("hf", "stops", edit(CONFIG, rope_scaling="linear")),
    "kind that is a list": Case("hf", "stops", _scaled(type=["linear"], factor=2.0)),
    "linear by text": Case("hf", "stops", _scaled(type="linear", factor="x")),
    "linear by true": Case("hf", "silent", _scaled(type="linear", factor=True)),
    "linear by -1": Case("hf", "silent", _scaled(type="linear", factor=-1)),
    "yarn by text": Case("hf", "stops", _scaled(type="yarn", factor="x")),
    "yarn with a length as float": Case(
        "hf", "stops", _scaled(type="yarn", factor=2.0, original_max_position_embeddings=32.0)
    ),
    "yarn with text": Case("hf", "stops", _scaled(type="yarn", factor=2.0, beta_fast="x")),
    "llama3 by text": Case(
        "hf",
        "stops",
        _scaled(rope_type="llama3", factor="x", original_max_position_embeddings=64),
    ),
    "llama3 with zero": Case(
        "hf", "stops", _scaled(rope_type="llama3", factor=2.0, low_freq_factor=0)
    ),
    "top_k as text": Case("hf", "stops", edit(GENERATION, top_k="x")),
    "top_k as float": Case("hf", "stops", edit(GENERATION, top_k=1.5)),
    "temperature as text": Case("hf", "stops", edit(GENERATION, temperature="hot")),
    "template that is a number": Case("hf", "stops", edit(TOKENIZER_CONFIG, chat_template=[5])),
    "quantisation": Case(
        "hf", "stops", edit(CONFIG, quantization_config={"quant_method": "bitsandbytes"})
    ),
    "biases without a word": Case("hf", "silent", _change(BIN, biases)),
}


def good_folders(root: Path) -> dict[str, Path]:
    """A Hugging Face folder by torch, and ours in one shard and in two."""
    hf = save_base(
        root / "hf",
        base_tensors(ROWS),
        pieces=ROWS,
        vocab_size=ROWS,
        max_position_embeddings=64,
    )
    for shards in (1, 2):
        output = root / f"meta{shards}"
        convert_checkpoint(hf, output, output_type="pth", num_shards=shards)
    return {"hf": hf, "meta1": root / "meta1", "meta2": root / "meta2"}
