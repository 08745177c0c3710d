"""The sizes of LLaMA that are measured, and the tensors each of them consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name
ATTENTION = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
}
MLP = {"gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "down_proj": "mlp.down_proj"}
LINEAR = ATTENTION | MLP
LLAMA_ROWS, CHINESE_LLAMA_ROWS, CHINESE_ALPACA_ROWS = 32000, 49953, 49954


@dataclass(frozen=True)
class Shape:
    """What ``config.json`` says about the size of a LLaMA, in transformers' terms."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int = LLAMA_ROWS
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048

    @property
    def head_dim(self) -> int:
        """Rows of q_proj and k_proj that belong to one head."""
        return self.hidden_size // self.num_attention_heads

    def linear(self, kind: str) -> tuple[int, int]:
        """(out_features, in_features) of a linear layer, e.g. ``k_proj``."""
        keys = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (self.hidden_size, self.hidden_size),
            "k_proj": (keys, self.hidden_size),
            "v_proj": (keys, self.hidden_size),
            "o_proj": (self.hidden_size, self.hidden_size),
            "gate_proj": (self.intermediate_size, self.hidden_size),
            "up_proj": (self.intermediate_size, self.hidden_size),
            "down_proj": (self.hidden_size, self.intermediate_size),
        }[kind]

    def tensors(self, rows: int | None = None) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in file order, with ``rows`` rows of vocabulary."""
        vocabulary = (self.vocab_size if rows is None else rows, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": vocabulary}
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            for kind, module in LINEAR.items():
                shapes[f"{prefix}.{module}.weight"] = self.linear(kind)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{prefix}.{norm}.weight"] = (self.hidden_size,)
        shapes["model.norm.weight"] = (self.hidden_size,)
        shapes["lm_head.weight"] = vocabulary
        return shapes

    def adapter_tensors(
        self, rank: int, rows: int, dora: bool = False
    ) -> dict[str, tuple[int, ...]]:
        """The same for a LoRA on every linear layer with whole embeddings, as PEFT 0.2 names it."""
        prefix = "base_model.model"
        shapes: dict[str, tuple[int, ...]] = {
            f"{prefix}.model.embed_tokens.weight": (rows, self.hidden_size)
        }
        for layer in range(self.num_hidden_layers):
            for kind, module in LINEAR.items():
                out_features, in_features = self.linear(kind)
                linear = f"{prefix}.model.layers.{layer}.{module}"
                shapes[f"{linear}.lora_A.weight"] = (rank, in_features)
                shapes[f"{linear}.lora_B.weight"] = (out_features, rank)
                if dora:
                    shapes[f"{linear}.lora_magnitude_vector"] = (out_features,)
        shapes[f"{prefix}.lm_head.weight"] = (rows, self.hidden_size)
        return shapes

    def nbytes(self, rows: int | None = None) -> int:
        """Bytes of all tensors at two bytes an element."""
        return sum(2 * math.prod(shape) for shape in self.tensors(rows).values())


SHAPES: dict[str, Shape] = {
    "tiny": Shape(64, 2, 8, 8, 176),
    "tiny_gqa": Shape(64, 2, 8, 4, 176),
    "1b": Shape(2048, 22, 32, 32, 5632),
    "3b": Shape(3200, 26, 32, 32, 8640),
    "7b": Shape(4096, 32, 32, 32, 11008),
    "13b": Shape(5120, 40, 40, 40, 13824),
    "33b": Shape(6656, 60, 52, 52, 17920),
    "65b": Shape(8192, 80, 64, 64, 22016),
    "70b": Shape(8192, 80, 64, 8, 28672, rms_norm_eps=1e-5, max_position_embeddings=4096),
}
