"""``adapter_config.json``: what it says about the arithmetic, and which adapters are refused.

Read without PEFT, whose import costs seconds and whose classes refuse fields of other releases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..json_text import read_json

CONFIG_NAME = "adapter_config.json"

# Fields that change nothing about how a finished adapter is added to its base.
_HARMLESS = frozenset(
    [
        "auto_mapping",
        "base_model_class",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "loftq_config",
        "megatron_core",
        "merge_weights",
        "modules_to_save",
        "parent_library",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "alpha_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    ]
)


@dataclass(frozen=True)
class Refusal:
    """A kind of adapter that is not merged, why, and what its owner can do."""

    field: str
    applies: Callable[[Any], bool]
    reason: str
    remedy: str


_MERGE_WITH_PEFT = "merge it with PEFT's own merge_and_unload on a machine with enough memory"
_TRAINED_ON_ANOTHER_BASE = (
    "it was trained relative to a base that the initialisation changed, so on the plain base it "
    "gives another model"
)


def _differs_from_base(init: object) -> bool:
    return isinstance(init, str) and init.lower() not in ("true", "gaussian", "eva", "orthogonal")


REFUSALS = (
    Refusal(
        "peft_type",
        lambda value: value != "LORA",
        "this kind of adapter is no LoRA",
        _MERGE_WITH_PEFT + ", if PEFT can merge this kind at all",
    ),
    Refusal("use_dora", bool, "DoRA scales rows after adding", _MERGE_WITH_PEFT),
    Refusal(
        "init_lora_weights",
        _differs_from_base,
        _TRAINED_ON_ANOTHER_BASE,
        "save it once with PEFT's path_initial_model_for_weight_conversion, which turns it into a "
        "plain LoRA",
    ),
    Refusal(
        "trainable_token_indices",
        bool,
        "it replaces single rows of the embeddings (trainable tokens)",
        _MERGE_WITH_PEFT,
    ),
    Refusal("enable_lora", bool, "it is for fused q, k, v matrices", _MERGE_WITH_PEFT),
    Refusal("layer_replication", bool, "it repeats layers of the base", _MERGE_WITH_PEFT),
    Refusal(
        "target_parameters",
        bool,
        "it adds to bare parameters such as experts",
        _MERGE_WITH_PEFT,
    ),
    Refusal(
        "alora_invocation_tokens",
        lambda value: value is not None,
        "activated LoRA acts on some positions only, so it cannot be merged",
        "use it unmerged, with PEFT",
    ),
    Refusal("lora_bias", bool, "its lora_B has a bias", _MERGE_WITH_PEFT),
    Refusal("use_qalora", bool, "QALoRA pools the inputs of lora_A", _MERGE_WITH_PEFT),
    Refusal("use_bdlora", bool, "its factors are block-diagonal", _MERGE_WITH_PEFT),
    Refusal("arrow_config", bool, "Arrow routes between adapters", "use it unmerged, with PEFT"),
    Refusal("kasa_config", bool, "KaSA changes the base and the product", _MERGE_WITH_PEFT),
    Refusal("velora_config", bool, "VeLoRA is not known here", _MERGE_WITH_PEFT),
    Refusal("monteclora_config", bool, "MonteCLoRA samples its weights", _MERGE_WITH_PEFT),
    Refusal(
        "megatron_config",
        bool,
        "it belongs to a Megatron model",
        "convert it to an adapter of the Hugging Face model first",
    ),
)


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a LoRA's ``adapter_config.json`` that say how it is added."""

    path: Path
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    ensure_weight_tying: bool
    base_model_name_or_path: str | None
    unknown: tuple[str, ...]

    def rank(self, module: str) -> int:
        """Rank of ``module``, by PEFT's rule: the first pattern that matches, else ``r``."""
        return int(self.rank_pattern.get(_matching(self.rank_pattern, module), self.r))

    def scaling(self, module: str) -> float:
        """``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA, of ``module``."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return float(alpha) / (rank**0.5 if self.use_rslora else rank)


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that matches the end of a module's name; PEFT's ``get_pattern_key``."""
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return pattern
    return module


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read ``adapter_config.json``.

    Raises ``AdapterError`` when it is missing, lacks what the arithmetic needs, or describes a kind
    of adapter that is not merged here.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        model = (folder / "config.json").is_file()
        raise AdapterError(
            "the folder holds no adapter configuration",
            file=path,
            expected=CONFIG_NAME,
            found="a whole model (config.json)" if model else f"no {CONFIG_NAME}",
            remedy="give the folder into which PEFT saved the adapter; beside the weights of a "
            "training checkpoint, put the adapter_config.json of its run",
        )
    fields = read_json(path)
    for refusal in REFUSALS:
        if refusal.applies(
            fields.get(refusal.field, "LORA" if refusal.field == "peft_type" else None)
        ):
            raise AdapterError(
                f"this adapter cannot be merged: {refusal.reason}",
                file=path,
                found=f'"{refusal.field}": {fields.get(refusal.field)!r}',
                remedy=refusal.remedy,
            )
    known = _HARMLESS | {refusal.field for refusal in REFUSALS}
    return AdapterConfig(
        path=path,
        r=int(_positive(fields, "r", path)),
        lora_alpha=_positive(fields, "lora_alpha", path),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern={k: int(v) for k, v in _pattern(fields, "rank_pattern", path).items()},
        alpha_pattern=_pattern(fields, "alpha_pattern", path),
        ensure_weight_tying=bool(fields.get("ensure_weight_tying")),
        base_model_name_or_path=fields.get("base_model_name_or_path"),
        unknown=tuple(sorted(key for key, value in fields.items() if key not in known and value)),
    )


def _pattern(fields: Mapping[str, Any], key: str, path: Path) -> dict[str, float]:
    """Numbers by regular expressions of module names."""
    pattern = fields.get(key) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(
            "the adapter configuration has a pattern of another kind",
            file=path,
            expected=f'"{key}": {{"a module\'s name": a number, ...}}',
            found=repr(pattern),
            remedy="take adapter_config.json from the run that trained the adapter",
        )
    for module in pattern:
        try:
            re.compile(module)
        except re.error as error:
            raise AdapterError(
                "the adapter configuration has a pattern that is no regular expression",
                file=path,
                expected=f'"{key}" with the names of modules, or expressions for them',
                found=f"{module!r}: {error}",
                remedy="take adapter_config.json from the run that trained the adapter",
            ) from None
    return {module: _positive(pattern, module, path) for module in pattern}


def _positive(fields: Mapping[str, Any], key: str, path: Path) -> float:
    value = fields.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise AdapterError(
            "the adapter configuration lacks a number that the scaling is made of",
            file=path,
            expected=f'"{key}": a positive number',
            found=repr(value),
            remedy="take adapter_config.json from the run that trained the adapter",
        )
    return float(value)
