"""Make the adapters in this folder with an older release of PEFT: run by hand, not by the tests.

    pip install --no-deps --target OLD_PEFT peft==0.9.0
    HF_HUB_OFFLINE=1 PYTHONPATH=OLD_PEFT:TRANSFORMERS_4.46 python tests/deltas/frozen/make.py [KIND]

The base is made once, by the first run. Each release writes adapters as its users had them, and the
logits that it gives with each of them, unmerged.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
IDS = torch.tensor([[1, 5, 9, 30, 33, 7, 39, 2]])
Q = ["q_proj", "down_proj"]
EMBEDDINGS = ["embed_tokens", "q_proj"]
# Kind, the first release that has it, and its settings.
KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "lora": ((0, 2), {"target_modules": Q}),
    "embeddings": ((0, 3), {"target_modules": EMBEDDINGS}),
    "vocabulary": ((0, 2), {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "patterns": (
        (0, 6),
        {"target_modules": Q, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
    ),
    # Until 0.13 a pattern of ranks that matches keeps those of alphas from being searched.
    "overlapping-patterns": (
        (0, 6),
        {"target_modules": Q, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {".*_proj": 5}},
    ),
    # Until 0.14 only the first of several choices is one of a name's end.
    "choice-patterns": (
        (0, 6),
        {
            "target_modules": Q,
            "rank_pattern": {"q_proj|down_proj": 2},
            "alpha_pattern": {"q_proj|down_proj": 5},
        },
    ),
    "rslora": ((0, 8), {"target_modules": Q, "use_rslora": True}),
    "dora": ((0, 9), {"target_modules": Q, "use_dora": True}),
    "embedding-dora": ((0, 14), {"target_modules": EMBEDDINGS, "use_dora": True}),
}


def base() -> LlamaForCausalLM:
    """The base, in float32; its values are exact in float16, in which it is kept."""
    folder = Path("base")  # as written into adapter_config.json
    if not folder.is_dir():
        torch.manual_seed(0)
        made = LlamaForCausalLM(LlamaConfig(**SIZES))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        made.half().save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)


def make(kind: str, settings: dict[str, Any]) -> None:
    """Save one adapter of random values, and the logits with it."""
    folder = HERE / f"peft-{peft.__version__}" / kind
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(base(), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
            if "magnitude" in name:
                parameter.data.abs_().add_(0.5)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    with torch.no_grad():
        save_file(
            {"logits": model(input_ids=IDS).logits.contiguous()}, folder / "logits.safetensors"
        )


if __name__ == "__main__":
    os.chdir(HERE)
    release = tuple(int(part) for part in peft.__version__.split(".")[:2])
    for kind, (since, settings) in KINDS.items():
        if release >= since and kind in (sys.argv[1:] or KINDS):
            make(kind, settings)
