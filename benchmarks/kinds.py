"""The kinds of base models and adapters that are made; the plain ones are the published ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from benchmarks.shapes import CHINESE_ALPACA_ROWS, LINEAR, Shape, Shapes

DTYPES = ("float16", "bfloat16", "float32")
STEMS = {"bin": ("pytorch_model", "bin"), "safetensors": ("model", "safetensors")}


@dataclass(frozen=True)
class BaseKind:
    """How a base model lies on the disk. ``sparse`` files are holes: right headers, all zeros."""

    container: str = "bin"
    dtype: str = "float16"
    sparse: bool = False

    def stamp(self) -> dict[str, Any]:
        """What differs from the plain kind, for the stamp of a folder."""
        changed = {"dtype": self.dtype, "sparse": self.sparse}
        plain = dataclasses.asdict(BaseKind())
        return {"container": self.container} | {
            key: value for key, value in changed.items() if value != plain[key]
        }


@dataclass(frozen=True)
class AdapterKind:
    """A LoRA; the plain one is that of the published Chinese adapters.

    ``targets`` are the linear kinds it is on; without ``embeddings`` it brings no whole tensors.
    """

    rank: int = 8
    alpha: int = 32
    rows: int = CHINESE_ALPACA_ROWS
    container: str = "bin"
    dtype: str = "float16"
    targets: tuple[str, ...] = tuple(LINEAR)
    embeddings: bool = True
    dora: bool = False

    def stamp(self) -> dict[str, Any]:
        """What it is, for the stamp of a folder: four fields, and what differs from the plain."""
        mine, plain = dataclasses.asdict(self), dataclasses.asdict(AdapterKind())
        always = ("rank", "alpha", "rows", "container")
        kept = {key: mine[key] for key in mine if key in always or mine[key] != plain[key]}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in kept.items()}

    @property
    def suffix(self) -> str:
        """What differs from the plain kind, rank and rows apart, for the names of folders."""
        plain = AdapterKind()
        targets = "-".join(self.targets) if self.targets != plain.targets else ""
        parts = [
            *(["dora"] if self.dora else []),
            *([targets] if targets else []),
            *([] if self.embeddings else ["bare"]),
            *([self.dtype] if self.dtype != plain.dtype else []),
        ]
        return "".join(f"-{part}" for part in parts)

    def tensors(self, shape: Shape) -> Shapes:
        """Names and shapes in the file."""
        tensors = shape.adapter_tensors(self.rank, self.rows, self.dora)
        return {
            name: size
            for name, size in tensors.items()
            if any(f".{target}." in name for target in self.targets)
            or (self.embeddings and "lora_" not in name)
        }

    def config(self) -> dict[str, Any]:
        """``adapter_config.json`` with the fields of PEFT 0.2, and ``use_dora`` if it is one."""
        return {
            "base_model_name_or_path": "hf_weights/llama",
            "bias": "none",
            "enable_lora": None,
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.1,
            "merge_weights": False,
            "modules_to_save": ["embed_tokens", "lm_head"] if self.embeddings else None,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": list(self.targets),
            "task_type": "CAUSAL_LM",
            **({"use_dora": True} if self.dora else {}),
        }
