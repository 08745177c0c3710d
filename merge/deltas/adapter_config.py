"""``adapter_config.json``: what it says about the arithmetic, and which adapters are refused.

Read without PEFT, whose import costs seconds and whose classes refuse fields of other releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..layouts.model_folder import ModelFolder
from ..layouts.replicated_layers import FIELD as LAYER_REPLICATION
from ..layouts.replicated_layers import LayerRange, read_layer_ranges
from ..messages import tr
from ..peft_layers.installed import require_known_method
from .config_fields import (
    LARGEST_FLOAT32,
    read_names,
    read_number,
    read_pattern,
    read_rank,
    read_text,
    read_token_indices,
)
from .foreign_config import as_peft
from .kinds import KNOWN_FIELDS
from .patterns import RULES, Rule, find_possible_rules
from .peft_methods import find_method
from .refusals import Refusal, find_refusal

if TYPE_CHECKING:
    from .gguf_adapter import GgufAdapter

CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
# Trainings use up to some hundreds.
_LARGEST_SCALING = 1e6
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})(?:/|$)")


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a LoRA's ``adapter_config.json`` that say how it is added.

    ``weight`` is not from the file: the user's factor for everything that is added. ``method`` is
    set for an adapter whose modules PEFT merges, not this program. ``rules`` are
    those by which PEFT may have read the patterns, the newest first; ``with_resolved_rule`` leaves
    one.
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
    bias: str | None = None
    task_type: str | None = None
    weight: float = 1.0
    peft_type: str = "LORA"
    method: str | None = None
    rules: tuple[Rule, ...] = RULES[:1]
    layer_replication: tuple[LayerRange, ...] = ()

    def rank(self, module: str) -> int:
        """Rank of ``module``: its pattern's, else ``r``."""
        return _rank_and_alpha(self, self.rules[0], module)[0]

    def scaling(self, module: str) -> float:
        """``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA, times the user's weight.

        Raises ``AdapterError`` for one that no training had: zero, or beyond all reason; and with
        the weight for one that float32 does not hold.
        """
        trained = _compute_scaling(self, self.rules[0], module)
        scaling = self.weight * trained
        if abs(scaling) > LARGEST_FLOAT32:
            raise AdapterError(
                tr("what the adapter adds would be multiplied by more than float32 holds"),
                file=self.path,
                tensor=module,
                expected=tr("at most {largest_float32:g}", largest_float32=LARGEST_FLOAT32),
                found=tr(
                    "{scaling:g}, with --lora_weights {weight:g}",
                    scaling=scaling,
                    weight=self.weight,
                ),
                remedy=tr(
                    "give --lora_weights near 1, and take adapter_config.json from the "
                    "run that trained the adapter"
                ),
            )
        if trained == 0 or abs(trained) > _LARGEST_SCALING:
            raise AdapterError(
                tr("the adapter configuration gives a scaling that no training had")
                + (tr(", so the adapter would add nothing") if trained == 0 else ""),
                file=self.path,
                tensor=module,
                expected=tr(
                    "lora_alpha / r of a training, not 0 and at most {largest_scaling:g}",
                    largest_scaling=_LARGEST_SCALING,
                ),
                found=tr(
                    "{trained:g}: r {rank}, lora_alpha or alpha_pattern {rank_and_alpha:g}",
                    trained=trained,
                    rank=self.rank(module),
                    rank_and_alpha=_rank_and_alpha(self, self.rules[0], module)[1],
                ),
                remedy=tr(
                    "write the lora_alpha of the training into that file; some tools "
                    "that convert checkpoints write 0 there"
                ),
            )
        return scaling

    def with_resolved_rule(self, ranks: Mapping[str, int]) -> AdapterConfig:
        """The configuration with one rule for patterns, by the ``ranks`` that the modules have.

        The shapes tell the rank, so a rule that gives others is not the one of the training.
        Raises ``AdapterError`` when two that are left give different scalings.
        """
        first, *others = [rule for rule in self.rules if _fits(self, rule, ranks)] or self.rules[:1]
        for other, module in product(others, ranks):
            one, two = (_compute_scaling(self, rule, module) for rule in (first, other))
            if one != two:
                raise AdapterError(
                    tr(
                        "rank_pattern and alpha_pattern do not mean the same to all releases "
                        "of PEFT, and it is not recorded which one trained the adapter"
                    ),
                    file=self.path,
                    expected=tr('"peft_version"'),
                    found=tr(
                        "{module} scaled by {one:g} ({releases}) or {two:g} ({releases_2})",
                        module=module,
                        one=one,
                        releases=first.releases,
                        two=two,
                        releases_2=other.releases,
                    ),
                    remedy=tr(
                        "write the release that trained it into that file, such as "
                        '"peft_version": "0.13.2"'
                    ),
                )
        return replace(self, rules=(first,))

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


def _rank_and_alpha(config: AdapterConfig, rule: Rule, module: str) -> tuple[int, float]:
    rank, alpha = rule.numbers(config.rank_pattern, config.alpha_pattern, module)
    return config.r if rank is None else rank, config.lora_alpha if alpha is None else alpha


def _compute_scaling(config: AdapterConfig, rule: Rule, module: str) -> float:
    rank, alpha = _rank_and_alpha(config, rule, module)
    return alpha / (rank**0.5 if config.use_rslora else rank)


def _fits(config: AdapterConfig, rule: Rule, ranks: Mapping[str, int]) -> bool:
    return all(_rank_and_alpha(config, rule, name)[0] == rank for name, rank in ranks.items())


class AdapterFolder(ModelFolder):
    """A folder that PEFT saved; it may hold configuration and tokenizer of the model as well.

    Or a LoRA in GGUF form: the file itself, or a folder with it and no ``adapter_config.json``.
    """

    @cached_property
    def gguf(self) -> GgufAdapter | None:
        """The adapter in GGUF form, None for one of PEFT's.

        Raises as ``read_gguf_adapter`` does.
        """
        if CONFIG_NAME in self.files or not self.matching("*.gguf"):
            return None
        from .gguf_adapter import read_gguf_adapter  # needs torch

        return read_gguf_adapter(self)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The fields of ``adapter_config.json``. Raises ``AdapterError`` when there is none."""
        if self.gguf is not None:
            return {"peft_type": "LORA", "base_model_name_or_path": self.gguf.base}
        if CONFIG_NAME not in self.files:
            raise _explain_missing(self)
        return self.read_json(CONFIG_NAME)

    def require_adapter(self) -> None:
        """Raise ``AdapterError`` for a folder without ``adapter_config.json``."""
        _ = self.fields

    def require_mergeable(self) -> None:
        """Raise ``AdapterError`` for what ``adapter_config`` refuses."""
        _ = self.adapter_config

    @cached_property
    def adapter_config(self) -> AdapterConfig:
        """What ``adapter_config.json`` says of the arithmetic.

        Raises ``AdapterError`` when it is missing, lacks what the arithmetic needs, or describes a
        kind of adapter that is not merged here.
        """
        if self.gguf is not None:
            return self.gguf.config()
        return _parse_adapter_config(self.path / CONFIG_NAME, self.fields)


def _explain_missing(adapter: AdapterFolder) -> AdapterError:
    folder = adapter.path
    if below := find_adapters_below(folder):
        listed = ", ".join(path.relative_to(folder).as_posix() for path in below[:5])
        return AdapterError(
            tr("the folder holds no adapter itself, but folders below it do"),
            file=folder,
            expected=CONFIG_NAME,
            found=listed + (tr(" and {n_below} more", n_below=len(below) - 5) if below[5:] else ""),
            remedy=tr("give one of them, such as {below}", below=below[0]),
        )
    model = "config.json" in adapter.files
    return AdapterError(
        tr("the folder holds no adapter configuration"),
        file=folder / CONFIG_NAME,
        expected=CONFIG_NAME,
        found=tr("a whole model (config.json)")
        if model
        else tr("no {config_name}", config_name=CONFIG_NAME),
        remedy=tr(
            "give the folder into which PEFT saved the adapter; beside the "
            "weights of a training checkpoint, put the adapter_config.json of "
            "its run"
        ),
    )


def find_adapters_below(folder: Path) -> list[Path]:
    """Return folders up to three levels below that hold an adapter, the newest checkpoint first."""
    patterns = ("/".join(["*"] * depth + [CONFIG_NAME]) for depth in (1, 2, 3))
    found = {path.parent for pattern in patterns for path in folder.glob(pattern)}

    def newest(path: Path) -> tuple[int, str]:
        steps = _CHECKPOINT.search(path.as_posix())
        return -int(steps[1]) if steps else 0, path.as_posix()

    return sorted(found, key=newest)


def _parse_adapter_config(path: Path, fields: dict[str, Any]) -> AdapterConfig:
    fields = as_peft(fields, path)
    unknown = _find_unknown(fields)
    if refused := find_refusal(fields):
        raise AdapterError(
            tr(
                "this adapter cannot be merged ({kind}): {reason}",
                kind=_describe_kind(refused, fields),
                reason=refused.reason,
            ),
            file=path,
            found=f'"{refused.field}": {fields.get(refused.field)!r}',
            remedy=refused.remedy,
        )
    if method := find_method(fields):
        return _parse_method(path, fields, method)
    for field in unknown:
        if fields[field]:
            raise AdapterError(
                tr(
                    "the adapter configuration has a field that is not known here and is "
                    "set, so it may change the arithmetic"
                ),
                file=path,
                expected=tr("fields of LoRA as PEFT up to 0.21 writes them (docs/adapters.md)"),
                found=f'"{field}": {fields[field]!r}'[:200],
                remedy=tr(
                    "if you know that it says nothing about how the adapter is added to "
                    "its base, remove it from this file; else look for a newer version "
                    "of this program, or merge it with PEFT's own merge_and_unload"
                ),
            )
    return AdapterConfig(
        path=path,
        r=read_rank(fields.get("r"), '"r"', path),
        lora_alpha=read_number(fields.get("lora_alpha"), '"lora_alpha"', path),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern=read_pattern(fields, "rank_pattern", path, read_rank),
        alpha_pattern=read_pattern(fields, "alpha_pattern", path, read_number),
        ensure_weight_tying=bool(fields.get("ensure_weight_tying")),
        base_model_name_or_path=read_text(fields, "base_model_name_or_path"),
        unknown=unknown,
        use_dora=bool(fields.get("use_dora")),
        lora_bias=bool(fields.get("lora_bias")),
        fan_in_fan_out=bool(fields.get("fan_in_fan_out")),
        modules_to_save=read_names(fields, "modules_to_save", path),
        trainable_token_indices=read_token_indices(fields, path),
        peft_version=read_text(fields, "peft_version"),
        bias=read_text(fields, "bias"),
        task_type=read_text(fields, "task_type"),
        rules=find_possible_rules(fields),
        layer_replication=read_layer_ranges(fields, path),
    )


def _parse_method(path: Path, fields: Mapping[str, Any], method: str) -> AdapterConfig:
    """An adapter that PEFT merges: its arithmetic is for PEFT to read, all else is as with LoRA.

    Raises ``AdapterError`` for a method that the installed PEFT does not know, and ``UsageError``
    where there is none.
    """
    require_known_method(fields, path)
    if fields.get(LAYER_REPLICATION):
        raise AdapterError(
            tr(
                "layer replication together with {method} is not merged: copies of a "
                "layer share its weights, which PEFT changes where it makes the "
                "adapter",
                method=method,
            ),
            file=path,
            expected=tr(
                '"{layer_replication}" with a plain LoRA, rsLoRA or DoRA',
                layer_replication=LAYER_REPLICATION,
            ),
            found=f'"{LAYER_REPLICATION}": {fields[LAYER_REPLICATION]!r}'[:200],
            remedy=tr("use it unmerged, with PEFT"),
        )
    return AdapterConfig(
        path=path,
        r=1,
        lora_alpha=1.0,
        use_rslora=False,
        rank_pattern={},
        alpha_pattern={},
        ensure_weight_tying=bool(fields.get("ensure_weight_tying")),
        base_model_name_or_path=read_text(fields, "base_model_name_or_path"),
        unknown=(),
        modules_to_save=read_names(fields, "modules_to_save", path),
        trainable_token_indices=read_token_indices(fields, path),
        peft_version=read_text(fields, "peft_version"),
        bias=read_text(fields, "bias"),
        task_type=read_text(fields, "task_type"),
        peft_type=str(fields.get("peft_type", "LORA")),
        method=method,
    )


def _describe_kind(refused: Refusal, fields: Mapping[str, Any]) -> str:
    """The kind's name; one of no table has only what the file calls it."""
    if refused.name.startswith("any other"):
        return f"{refused.field} {str(fields.get(refused.field))[:40]}"
    return refused.name


def _find_unknown(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(fields.keys() - KNOWN_FIELDS))
