"""Configurations of adapters that are not PEFT's LoRA, in its words where they mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..messages import tr
from .peft_methods import TRAINABLE_TOKENS


def as_peft(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields as those of a LoRA of PEFT.

    ``TRAINABLE_TOKENS`` is a LoRA without matrices; mlx-lm's ``W + scale (A B)^T`` one with
    ``scale`` for ``lora_alpha / r``. Raises ``AdapterError`` for the files of tools whose adapters
    are none.
    """
    if fields.get("peft_type") == TRAINABLE_TOKENS:
        plain = {k: v for k, v in fields.items() if k not in ("token_indices", "init_weights")}
        indices = fields.get("token_indices")
        return {**plain, "r": 1, "lora_alpha": 1, "trainable_token_indices": indices}
    if "peft_type" in fields:
        return dict(fields)
    if is_mlx(fields):
        return _of_mlx(fields, path)
    if isinstance(fields.get("config"), (dict, str)) and "model_class" in fields:
        raise AdapterError(
            tr(
                "this is an adapter of AdapterHub's library, which inserts layers "
                "and is no LoRA of PEFT"
            ),
            file=path,
            found=f'"model_class": {fields["model_class"]!r}'[:80],
            remedy=tr("merge it with AdapterHub's own merge_adapter, if it is a LoRA"),
        )
    return dict(fields)


def is_mlx(fields: Mapping[str, Any]) -> bool:
    """Whether mlx-lm wrote a configuration."""
    return "lora_parameters" in fields or "fine_tune_type" in fields


def _of_mlx(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    said = fields.get("lora_parameters")
    numbers = said if isinstance(said, dict) else {}
    rank, scale, kind = numbers.get("rank"), numbers.get("scale"), fields.get("fine_tune_type")
    is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if kind not in (None, "lora") or type(rank) is not int or not is_number:
        raise AdapterError(
            tr("this adapter of mlx-lm cannot be merged here"),
            file=path,
            expected=tr('"fine_tune_type": "lora", and "lora_parameters" with "rank" and "scale"'),
            found=f"{kind!r}, {said!r}"[:200],
            remedy=tr("merge it with mlx_lm.fuse"),
        )
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": float(scale or 0) * rank,
        "base_model_name_or_path": fields.get("model"),
    }
