"""Adapters of every method in PEFT's own registry, on tiny bases, with random values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.tuners_utils import BaseTuner

from tests.kit.adapters import load
from tests.kit.files import Tensors

METHODS = sorted(method.value for method in CONFIGS)
# Those with layers in the place of the model's own; the others are prompts and the like.
WITH_LAYERS = [
    name
    for name in METHODS
    if isinstance(TUNERS[name], type) and issubclass(TUNERS[name], BaseTuner)
]
TARGETS = ["q_proj", "down_proj"]
# What a method needs said for a model of 64 columns; a method that is not here gets its defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "total_step": 9, "tinit": 1, "tfinal": 2},
    "ADAMSS": {"r": 16},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "OFT": {"oft_block_size": 8, "r": 0},
    "OSF": {"effective_rank": 4},
    "ROAD": {"group_size": 16},
    "SHIRA": {"random_seed": 3},
    "SUPERTUNING": {"sparsity": 0.9},
    "TINYLORA": {"u": 8},
    "VBLORA": {"vector_length": 8, "num_vectors": 20},
    "WAVEFT": {"n_frequency": 50},
}
# Variants of LoRA that PEFT's own code merges, by their names in the registry.
VARIANTS: dict[str, dict[str, Any]] = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "target_parameters": {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]},
    "QALoRA": {"use_qalora": True, "qalora_group_size": 16},
    "BD-LoRA": {
        "use_bdlora": BdLoraConfig(
            target_modules_bd_a=["q_proj"], target_modules_bd_b=["down_proj"], nblocks=2
        )
    },
    "KaSA": {"kasa_config": KasaConfig()},
    "VeLoRA": {"velora_config": VeloraConfig()},
    "MonteCLoRA": {"monteclora_config": MontecloraConfig()},
}


def make_method(folder: Path, base: Path, method: str, **changes: Any) -> Path:
    """Let PEFT put an adapter of ``method`` on ``base``, change every trained value, save it."""
    kind: Any = CONFIGS[method]  # type: ignore[index]
    fields = kind.__dataclass_fields__
    settings: dict[str, Any] = {"target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    settings |= {"r": 4} if "r" in fields and method != "ADALORA" else {}
    settings |= {"progressbar": False} if "progressbar" in fields else {}
    model = load(base)
    own = {id(parameter) for parameter in model.parameters()}
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, kind(**settings | SETTINGS.get(method, {}) | changes))
        for parameter in adapted.parameters():
            if id(parameter) not in own and parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.05
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merge_method_with_peft(base: Path, adapter: Path, dtype: torch.dtype) -> Tensors:
    """PEFT's ``merge_and_unload`` in float32, rounded once to ``dtype``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(11)  # nothing of the result may come from another random start
        merged = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    return {name: tensor.detach().to(dtype) for name, tensor in merged.state_dict().items()}
