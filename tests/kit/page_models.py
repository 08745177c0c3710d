"""A base and an adapter, tiny, after whose merge the answer to any question is another one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.kit.models import PREFIX, save_adapter
from tests.kit.talking_models import byte_ids, make_reciting

# No byte of UTF-8 occurs twice in either.
BEFORE, AFTER = "中文", "好"
_EOS = 2


def make_pair(root: Path, tokenizer: ModelProto, scratch: Path) -> None:
    """Write the folders ``base`` and ``adapters/first`` below ``root``.

    Both models answer to a prompt that ends in a line break.
    """
    for folder, answer in ((root / "base", BEFORE), (scratch / "after", AFTER)):
        make_reciting(folder, tokenizer, [*byte_ids(tokenizer, "\n" + answer), _EOS])
    after = load_file(scratch / "after" / "model.safetensors")
    module = "model.layers.0.self_attn.q_proj"
    width = after[f"{module}.weight"].shape[0]
    tensors = {
        f"{PREFIX}{module}.lora_A.weight": torch.ones(2, width),
        f"{PREFIX}{module}.lora_B.weight": torch.ones(width, 2),
        f"{PREFIX}lm_head.weight": after["lm_head.weight"],
        f"{PREFIX}model.embed_tokens.weight": after["model.embed_tokens.weight"],
    }
    save_adapter(root / "adapters" / "first", tensors, r=2)
