"""GPT-2's linear layers, which keep their matrices transposed: (in, out) instead of (out, in)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# transformers' Conv1D is used by these model types, for these layers.
_MODEL_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_LAYERS = re.compile(r"(.*\.)?(c_attn|q_attn|c_proj|c_fc)\.weight")


def stores_transposed(config: Mapping[str, Any], name: str) -> bool:
    """Whether a model with this ``config.json`` keeps the tensor ``name`` transposed."""
    return config.get("model_type") in _MODEL_TYPES and _LAYERS.fullmatch(name) is not None
