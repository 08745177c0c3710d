"""A tiny merge with a report: four layers, LoRA on every matrix, and a vocabulary that grows.

Everything is written by torch alone; the numbers of a report are computed again in float64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merge import merge_lora
from tests.kit.files import Tensors
from tests.kit.models import (
    ALPACA_ROWS,
    HIDDEN,
    LAYERS,
    LINEAR,
    LLAMA_ROWS,
    PREFIX,
    base_tensors,
    random_tensor,
    save_adapter,
    save_base,
)

RANKS = (2, 3)
ALPHA = 6


@dataclass(frozen=True)
class Reported:
    """A base, two adapters on it in their order, and the folder they are merged into."""

    folder: Path
    base: Tensors
    adapters: tuple[Tensors, ...]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def inputs(self) -> dict[str, Any]:
        names = [self.folder / f"lora{n}" for n in range(1, len(self.adapters) + 1)]
        return {"base_model": self.folder / "base", "lora_model": names}

    def merge(self, **options: Any) -> dict[str, Any]:
        """Merge with a report; return what ``report.json`` says."""
        given = {"output_type": "huggingface", "report": True, **self.inputs, **options}
        merge_lora(output_dir=given.pop("output_dir", self.out), **given)
        return read_report(self.out)

    def product(self, number: int, name: str) -> torch.Tensor:
        """What an adapter adds to a matrix, in float64."""
        module, tensors = name.removesuffix(".weight"), self.adapters[number]
        a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"].double() for side in "AB")
        return ALPHA / len(a) * b @ a


def read_report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


def find_entry(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the report says of one tensor."""
    return next(entry for entry in report["tensors"] if entry["name"] == name)


def make_lora(rank: int, rows: int, seed: int) -> Tensors:
    """A LoRA on every matrix of every layer, with whole embeddings and LM head."""
    tensors: Tensors = {
        f"{PREFIX}{name}.weight": random_tensor(rows, HIDDEN, seed=seed + number)
        for number, name in enumerate(("model.embed_tokens", "lm_head"))
    }
    for layer in range(LAYERS):
        for number, (module, (out, inner)) in enumerate(LINEAR.items()):
            name, one = f"{PREFIX}model.layers.{layer}.{module}", seed + 20 * layer + 2 * number
            tensors[f"{name}.lora_A.weight"] = random_tensor(rank, inner, seed=one + 2)
            tensors[f"{name}.lora_B.weight"] = random_tensor(out, rank, seed=one + 3)
    return tensors


def make_reported(folder: Path, **config: Any) -> Reported:
    """Write base and adapters."""
    base = base_tensors()
    save_base(folder / "base", base)
    adapters = []
    for number, (rank, rows) in enumerate(zip(RANKS, (LLAMA_ROWS, ALPACA_ROWS), strict=True)):
        tensors = make_lora(rank, rows, seed=1000 * (number + 1))
        target = folder / f"lora{number + 1}"
        save_adapter(target, tensors, pieces=rows, r=rank, lora_alpha=ALPHA, **config)
        adapters.append(tensors)
    return Reported(folder, base, tuple(adapters))
