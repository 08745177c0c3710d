"""What a merge must give, in float64, and how far tensors are from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.kit.files import Tensors, load_weights


def float64_merge(base: Path, adapters: Sequence[Path]) -> Tensors:
    """``W + sum of (alpha / r) B A`` in float64, whole tensors replaced, rounded once."""
    tensors = {name: tensor.double() for name, tensor in load_weights(base).items()}
    for adapter in adapters:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        scaling = config["lora_alpha"] / config["r"]
        weights = {
            name.removeprefix("base_model.model."): tensor.double()
            for name, tensor in load_weights(adapter).items()
        }
        for name, tensor in weights.items():
            if "lora_" not in name:
                tensors[name] = tensor
        for name, a in weights.items():
            if ".lora_A." in name:
                module = name.removesuffix(".lora_A.weight")
                tensors[f"{module}.weight"] += scaling * weights[f"{module}.lora_B.weight"] @ a
    return {name: tensor.half() for name, tensor in tensors.items()}


def ulps(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many float16 values lie between two float16 tensors, element by element."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(found) - ordered(expected)).abs()
