"""``adapter_config.json``: what it says about the arithmetic, and which adapters are refused.

Read without PEFT, whose import costs seconds and whose classes refuse fields of other releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..json_text import read_json
from .kinds import KNOWN_FIELDS, changes_arithmetic
from .refusals import refusal

CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
# Beyond any rank or alpha, and float32 holds it.
_LARGEST = 1e30
_OF_THIS_RUN = "take adapter_config.json from the run that trained the adapter"


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a LoRA's ``adapter_config.json`` that say how it is added.

    ``weight`` is not from the file: the user's factor for everything that is added.
    """

    path: Path
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    ensure_weight_tying: bool
    base_model_name_or_path: str | None
    unknown: tuple[str, ...]
    use_dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    peft_version: str | None = None
    weight: float = 1.0

    def rank(self, module: str) -> int:
        """Rank of ``module``, by PEFT's rule: the first pattern that matches, else ``r``."""
        return int(self.rank_pattern.get(_matching(self.rank_pattern, module), self.r))

    def scaling(self, module: str) -> float:
        """``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA, times the user's weight."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return self.weight * float(alpha) / (rank**0.5 if self.use_rslora else rank)

    def token_indices(self, module: str) -> tuple[int, ...]:
        """The rows of ``module`` that are replaced; a plain list is for every side that has any."""
        if not isinstance(self.trainable_token_indices, Mapping):
            return self.trainable_token_indices
        for name, indices in self.trainable_token_indices.items():
            if module == name or module.endswith(f".{name}"):
                return indices
        return next(iter(self.trainable_token_indices.values()), ())

    def saves(self, module: str) -> bool:
        """Whether ``modules_to_save`` names ``module``: then it was trained."""
        return any(module == name or module.endswith(f".{name}") for name in self.modules_to_save)


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that matches the end of a module's name; PEFT's ``get_pattern_key``."""
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return pattern
    return module


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of ``adapter_config.json``. Raises ``AdapterError`` when there is none."""
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
    return read_json(path)


def read_adapter_config(folder: Path, weight: float = 1.0) -> AdapterConfig:
    """Read ``adapter_config.json``.

    Raises ``AdapterError`` when it is missing, lacks what the arithmetic needs, or describes a kind
    of adapter that is not merged here.
    """
    path, fields = folder / CONFIG_NAME, read_fields(folder)
    unknown = _unknown(fields, path)
    if refused := refusal(fields):
        raise AdapterError(
            f"this adapter cannot be merged ({refused.name}): {refused.reason}",
            file=path,
            found=f'"{refused.field}": {fields.get(refused.field)!r}',
            remedy=refused.remedy,
        )
    for field in unknown:
        if changes_arithmetic(field):
            raise AdapterError(
                "the adapter configuration has a field that may change the arithmetic and is not "
                "known here",
                file=path,
                expected="fields of LoRA as PEFT up to 0.21 writes them",
                found=f'"{field}": {fields[field]!r}',
                remedy="look for a newer version of this program, or merge it with PEFT's own "
                "merge_and_unload; if the field is your own and harmless, remove it",
            )
    return AdapterConfig(
        path=path,
        r=int(_positive(fields, "r", path)),
        lora_alpha=_positive(fields, "lora_alpha", path),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern={k: int(v) for k, v in _pattern(fields, "rank_pattern", path).items()},
        alpha_pattern=_pattern(fields, "alpha_pattern", path),
        ensure_weight_tying=bool(fields.get("ensure_weight_tying")),
        base_model_name_or_path=_text(fields, "base_model_name_or_path"),
        unknown=unknown,
        use_dora=bool(fields.get("use_dora")),
        lora_bias=bool(fields.get("lora_bias")),
        fan_in_fan_out=bool(fields.get("fan_in_fan_out")),
        modules_to_save=_names(fields, "modules_to_save", path),
        trainable_token_indices=_token_indices(fields, path),
        peft_version=_text(fields, "peft_version"),
        weight=weight,
    )


def _unknown(fields: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    return tuple(sorted(key for key, value in fields.items() if key not in KNOWN_FIELDS and value))


def _text(fields: Mapping[str, Any], key: str) -> str | None:
    """A field that is only told to people."""
    value = fields.get(key)
    return value if isinstance(value, str) else None


def _names(fields: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = fields.get(key) or ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise AdapterError(
            "the adapter configuration has a list of modules that is none",
            file=path,
            expected=f'"{key}": names of modules, or null',
            found=repr(value),
            remedy=_OF_THIS_RUN,
        )
    return tuple(value)


def _token_indices(
    fields: Mapping[str, Any], path: Path
) -> tuple[int, ...] | Mapping[str, tuple[int, ...]]:
    value = fields.get("trainable_token_indices") or ()
    lists = list(value.values()) if isinstance(value, dict) else [value]
    for indices in lists:
        numbers = isinstance(indices, (list, tuple)) and all(
            isinstance(index, int) and index >= 0 for index in indices
        )
        if not numbers or len(set(indices)) != len(indices):
            raise AdapterError(
                "the adapter configuration lists trained tokens in a way that says no rows",
                file=path,
                expected='"trainable_token_indices": different numbers from 0 on, in a list or in '
                "lists by modules",
                found=repr(value),
                remedy=_OF_THIS_RUN,
            )
    if isinstance(value, dict):
        return {str(module): tuple(indices) for module, indices in value.items()}
    return tuple(value)


def _pattern(fields: Mapping[str, Any], key: str, path: Path) -> dict[str, float]:
    """Numbers by regular expressions of module names."""
    pattern = fields.get(key) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(
            "the adapter configuration has a pattern of another kind",
            file=path,
            expected=f'"{key}": {{"a module\'s name": a number, ...}}',
            found=repr(pattern),
            remedy=_OF_THIS_RUN,
        )
    for module in pattern:
        try:
            _require_quick(module)
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterError(
                "the adapter configuration has a pattern that is no regular expression",
                file=path,
                expected=f'"{key}" with the names of modules, or expressions for them',
                found=f"{module!r}: {error}",
                remedy=_OF_THIS_RUN,
            ) from None
    return {module: _positive(pattern, module, path) for module in pattern}


def _require_quick(pattern: str) -> None:
    """Compile a pattern. Raises ``re.error`` for one whose search might not end in our lifetime.

    That takes repetitions of repetitions, or many choices; names of modules need neither.
    """
    loops, choices = len(re.findall(r"[*+{]", pattern)), pattern.count("(")
    if len(pattern) > 1000 or loops > 4 or choices > 4 or re.search(r"\)\s*[*+{]", pattern):
        raise re.error("it repeats too much to be searched for")
    re.compile(pattern)


def _positive(fields: Mapping[str, Any], key: str, path: Path) -> float:
    value: Any = fields.get(key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < _LARGEST:
        raise AdapterError(
            "the adapter configuration lacks a number that the scaling is made of",
            file=path,
            expected=f'"{key}": a positive number',
            found=repr(value),
            remedy=_OF_THIS_RUN,
        )
    return float(value)
