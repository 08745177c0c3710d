"""Tiny models in Meta's layout, split as model-parallel LLaMA holds them, and what they are in
transformers' layout: written from the published architecture, with nothing of the merge's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.kit.tokenizer_models import write_tokenizer

Tensors = dict[str, torch.Tensor]

DIM, HEADS, LAYERS, FEED_FORWARD, ROWS = 64, 8, 2, 176, 104
# By the parallel layers of Meta's model: columns of the row-parallel ones and of the embeddings.
_BY_COLUMNS = ("tok_embeddings.weight", "attention.wo.weight", "feed_forward.w2.weight")
_HF_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "output": "lm_head",
}


def meta_tensors(
    kv_heads: int = HEADS,
    rows: int = ROWS,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Tensors:
    """A random model under Meta's names, whole."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.3).to(dtype)

    kv_rows = DIM // HEADS * kv_heads
    tensors = {"tok_embeddings.weight": random(rows, DIM), "norm.weight": random(DIM).abs()}
    for layer in range(LAYERS):
        shapes = {
            "attention.wq": (DIM, DIM),
            "attention.wk": (kv_rows, DIM),
            "attention.wv": (kv_rows, DIM),
            "attention.wo": (DIM, DIM),
            "feed_forward.w1": (FEED_FORWARD, DIM),
            "feed_forward.w2": (DIM, FEED_FORWARD),
            "feed_forward.w3": (FEED_FORWARD, DIM),
            "attention_norm": (DIM,),
            "ffn_norm": (DIM,),
        }
        for name, shape in shapes.items():
            tensors[f"layers.{layer}.{name}.weight"] = random(*shape)
    return tensors | {"output.weight": random(rows, DIM)}


def split(tensors: Tensors, count: int, embeddings_by_rows: bool = False) -> list[Tensors]:
    """Parts of equal size, the remainder of a vocabulary in the last; vectors in every part."""
    shards: list[Tensors] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        axis = 1 if name.endswith(_BY_COLUMNS) else 0
        if embeddings_by_rows and name == "tok_embeddings.weight":
            axis = 0
        size = tensor.shape[axis] // count if tensor.dim() > 1 else 0
        for number, shard in enumerate(shards):
            last = number == count - 1
            part = tensor
            if tensor.dim() > 1:
                length = tensor.shape[axis] - size * number if last else size
                part = tensor.narrow(axis, size * number, length)
            shard[name] = part.clone()
    return shards


def params(kv_heads: int = HEADS, **changes: Any) -> dict[str, Any]:
    """``params.json`` as Meta writes it: LLaMA 1's keys, and ``n_kv_heads`` where it is needed."""
    fields: dict[str, Any] = {
        "dim": DIM,
        "multiple_of": 16,
        "n_heads": HEADS,
        "n_layers": LAYERS,
        "norm_eps": 1e-06,
        "vocab_size": -1,
    }
    if kv_heads != HEADS:
        fields["n_kv_heads"] = kv_heads
    return {key: value for key, value in (fields | changes).items() if value is not None}


def save_meta(
    folder: Path,
    shards: list[Tensors],
    described: dict[str, Any] | None = None,
    pieces: int | None = ROWS,
) -> Path:
    """Write shards, ``params.json`` and (unless ``pieces`` is None) ``tokenizer.model``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02}.pth")
    text = json.dumps(params() if described is None else described)
    (folder / "params.json").write_text(text, encoding="utf-8")
    if pieces:
        write_tokenizer(folder, pieces)
    return folder


def make_meta(folder: Path, count: int = 1, kv_heads: int = HEADS, **changes: Any) -> Path:
    """A random model in ``count`` shards."""
    return save_meta(folder, split(meta_tensors(kv_heads, **changes), count), params(kv_heads))


def hf_tensors(tensors: Tensors, kv_heads: int = HEADS) -> Tensors:
    """The same model under transformers' names, rows of q and k in its order."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith((".wq.weight", ".wk.weight")):
            tensor = tensor[halves(HEADS if ".wq." in name else kv_heads, DIM // HEADS)]
        name = name.replace("layers.", "model.layers.")
        for old, new in _HF_NAMES.items():
            name = name.replace(f"{old}.weight", f"{new}.weight")
        renamed["model.norm.weight" if name == "norm.weight" else name] = tensor
    return renamed


def halves(heads: int, size: int) -> list[int]:
    """For each row in transformers' order, the row of Meta's: pairs (0, 1), (2, 3), ... of a head
    become the first halves 0, 2, 4, ... and after them the second ones.
    """
    order = [*range(0, size, 2), *range(1, size, 2)]
    return [head * size + row for head in range(heads) for row in order]


def to_meta(tensors: Tensors, heads: int, kv_heads: int) -> Tensors:
    """A model with transformers' names and rows under Meta's, in its order of rows."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name or ".k_proj." in name:
            tensor = rotary_pairs(tensor, heads if ".q_proj." in name else kv_heads)
        for meta, hugging_face in _HF_NAMES.items():
            name = name.replace(f"{hugging_face}.weight", f"{meta}.weight")
        renamed[name.removeprefix("model.")] = tensor
    return renamed


def rotary_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo transformers' ``permute`` of q and k: from halves apart to pairs side by side."""
    rows, columns = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)
