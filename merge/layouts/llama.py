"""THE table: every tensor of a LLaMA, its name in each layout, its shape, how Meta shards it.

Sources: Meta's ``llama/model.py`` (names, parallel layers) and transformers' conversion script for
LLaMA (the rotary order of q and k); llama.cpp's ``gguf`` package (its names).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .config import LlamaShape

Rotary = Literal["num_attention_heads", "num_key_value_heads"]

EMBED_TOKENS = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

# Buffers that old conversions saved: rotary frequencies, computed by every reader.
_LEFTOVERS = re.compile(r"(model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rope\.freqs)$")


# Meta's weight files, one for each GPU that the model was meant for.
META_SHARD = re.compile(r"consolidated\.(?P<number>\d{2,3})\.pth")


@dataclass(frozen=True)
class Row:
    """One tensor, or one per layer where the names hold ``{}``.

    ``shape`` names the sizes of ``LlamaShape`` (``vocab`` is the number of embedding rows).
    ``shard_axis`` is the axis along which Meta splits it over files, None for a copy in each.
    ``rotary`` names the heads within which Meta keeps rotary pairs side by side, where Hugging Face
    keeps the two halves apart.
    """

    hf: str
    meta: str
    gguf: str
    shape: tuple[str, ...]
    shard_axis: int | None
    rotary: Rotary | None = None


_ATTENTION, _MLP = "model.layers.{}.self_attn.", "model.layers.{}.mlp."

TABLE = (
    Row(EMBED_TOKENS, "tok_embeddings.weight", "token_embd.weight", ("vocab", "hidden_size"), 1),
    Row(
        _ATTENTION + "q_proj.weight",
        "layers.{}.attention.wq.weight",
        "blk.{}.attn_q.weight",
        ("q_rows", "hidden_size"),
        0,
        "num_attention_heads",
    ),
    Row(
        _ATTENTION + "k_proj.weight",
        "layers.{}.attention.wk.weight",
        "blk.{}.attn_k.weight",
        ("kv_rows", "hidden_size"),
        0,
        "num_key_value_heads",
    ),
    Row(
        _ATTENTION + "v_proj.weight",
        "layers.{}.attention.wv.weight",
        "blk.{}.attn_v.weight",
        ("kv_rows", "hidden_size"),
        0,
    ),
    Row(
        _ATTENTION + "o_proj.weight",
        "layers.{}.attention.wo.weight",
        "blk.{}.attn_output.weight",
        ("hidden_size", "q_rows"),
        1,
    ),
    Row(
        _MLP + "gate_proj.weight",
        "layers.{}.feed_forward.w1.weight",
        "blk.{}.ffn_gate.weight",
        ("intermediate_size", "hidden_size"),
        0,
    ),
    Row(
        _MLP + "up_proj.weight",
        "layers.{}.feed_forward.w3.weight",
        "blk.{}.ffn_up.weight",
        ("intermediate_size", "hidden_size"),
        0,
    ),
    Row(
        _MLP + "down_proj.weight",
        "layers.{}.feed_forward.w2.weight",
        "blk.{}.ffn_down.weight",
        ("hidden_size", "intermediate_size"),
        1,
    ),
    Row(
        "model.layers.{}.input_layernorm.weight",
        "layers.{}.attention_norm.weight",
        "blk.{}.attn_norm.weight",
        ("hidden_size",),
        None,
    ),
    Row(
        "model.layers.{}.post_attention_layernorm.weight",
        "layers.{}.ffn_norm.weight",
        "blk.{}.ffn_norm.weight",
        ("hidden_size",),
        None,
    ),
    Row("model.norm.weight", "norm.weight", "output_norm.weight", ("hidden_size",), None),
    Row(LM_HEAD, "output.weight", "output.weight", ("vocab", "hidden_size"), 0),
)


@dataclass(frozen=True)
class Entry:
    """One tensor of one model: its names, its shape with ``vocab`` left open as None."""

    hf: str
    meta: str
    gguf: str
    shape: tuple[int | None, ...]
    row: Row

    def complete_shape(self, vocab: int) -> tuple[int, ...]:
        """Its shape in a model with ``vocab`` embedding rows."""
        return tuple(vocab if size is None else size for size in self.shape)


def entries(shape: LlamaShape) -> Iterator[Entry]:
    """Every tensor of a model, in the order of the network."""
    layered = [row for row in TABLE if "{}" in row.hf]
    single = [row for row in TABLE if "{}" not in row.hf]
    head, tail = single[:1], single[1:]
    yield from (_make_entry(row, shape, "") for row in head)
    for layer in range(shape.num_hidden_layers):
        yield from (_make_entry(row, shape, str(layer)) for row in layered)
    yield from (_make_entry(row, shape, "") for row in tail)


def _make_entry(row: Row, shape: LlamaShape, layer: str) -> Entry:
    sizes = tuple(None if name == "vocab" else getattr(shape, name) for name in row.shape)
    hf, meta, gguf = (name.format(layer) for name in (row.hf, row.meta, row.gguf))
    return Entry(hf, meta, gguf, sizes, row)


def is_rotary_buffer(name: str) -> bool:
    """Whether a tensor is a buffer of rotary frequencies that old conversions left behind."""
    return _LEFTOVERS.match(name) is not None


def count_meta_shards(shape: LlamaShape) -> int:
    """Number of files over which Meta spreads a model of this size.

    Meta keeps a shard below nine billion parameters (7B and 8B: 1, 13B: 2, 33B and 34B: 4, 65B and
    70B: 8), in powers of two up to the eight GPUs of one machine.
    """
    shards = 1
    while shards < 8 and shape.layer_elements > shards * 9_000_000_000:
        shards *= 2
    return shards
