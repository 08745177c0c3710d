"""Kinds of adapters that are not merged: how they are detected, why, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..messages import tr
from .peft_methods import START_FIELD, VARIANTS, is_configured


@dataclass(frozen=True)
class Refusal:
    """A kind of adapter that is not merged: how it is detected, why, and the remedy.

    ``marks`` are parts of tensor names that give the kind away where its field does not.
    """

    name: str
    field: str
    applies: Callable[[Any], bool]
    reason: str
    remedy: str
    marks: tuple[str, ...] = ()


_NO_WEIGHTS = tr("it is no change of weights")
_USE_UNMERGED = tr("use it unmerged, with PEFT")
_CONVERT = tr(
    "save it once with PEFT's path_initial_model_for_weight_conversion, "
    "which turns it into a plain LoRA"
)
_RESIDUAL = tr(
    "give the residual base that was saved with the run, and write true "
    "for init_lora_weights into this file; or save it with PEFT's "
    "path_initial_model_for_weight_conversion"
)
_RANDOM = tr("its initialisation is a randomised decomposition of the base, different each time")
_OTHER_BASE = tr(
    "it was trained relative to a base that the initialisation changed, "
    "so on the plain base it gives another model"
)
# Starts that leave the base as it is.
_PLAIN_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")


def _is_known_start(value: object) -> bool:
    """Whether ``init_lora_weights`` is yes or no, or a start that can be merged."""
    if isinstance(value, str):
        starts = (variant for variant in VARIANTS if variant.field == START_FIELD)
        return value.lower() in _PLAIN_STARTS or any(start.applies(value) for start in starts)
    return value is None or isinstance(value, bool)


def _type(name: str, peft_type: str, reason: str, remedy: str, *marks: str) -> Refusal:
    return Refusal(name, "peft_type", lambda value: value == peft_type, reason, remedy, marks)


def _start(name: str, start: str, *, remedy: str = _CONVERT, reason: str = _OTHER_BASE) -> Refusal:
    def applies(value: object) -> bool:
        return isinstance(value, str) and value.lower().startswith(start)

    return Refusal(name, START_FIELD, applies, reason, remedy)


REFUSED = (
    _type(
        "X-LoRA",
        "XLORA",
        tr("it mixes several adapters anew for each token"),
        _USE_UNMERGED,
        "xlora",
    ),
    _type("Poly", "POLY", tr("it mixes its skills anew for each task"), _USE_UNMERGED, "poly_lora"),
    _type("Lily", "LILY", tr("it chooses its experts anew for each token"), _USE_UNMERGED, "lily_"),
    _type("ShadowPEFT", "SHADOW", tr("it runs a second network beside the model"), _USE_UNMERGED),
    _type(tr("prefix tuning"), "PREFIX_TUNING", _NO_WEIGHTS, _USE_UNMERGED),
    _type(tr("prompt tuning"), "PROMPT_TUNING", _NO_WEIGHTS, _USE_UNMERGED),
    _type("p-tuning", "P_TUNING", _NO_WEIGHTS, _USE_UNMERGED, "prompt_embeddings"),
    _type(tr("multitask prompt tuning"), "MULTITASK_PROMPT_TUNING", _NO_WEIGHTS, _USE_UNMERGED),
    _type(tr("context-aware prompt tuning"), "CPT", _NO_WEIGHTS, _USE_UNMERGED),
    _type("Cartridge", "CARTRIDGE", _NO_WEIGHTS, _USE_UNMERGED),
    _type("LLaMA-Adapter", "ADAPTION_PROMPT", _NO_WEIGHTS, _USE_UNMERGED, "adaption_"),
    _start(tr("randomised PiSSA"), "pissa_niter", remedy=_RESIDUAL, reason=_RANDOM),
    _start("CorDA", "corda"),
    _start("LoRA-GA", "lora_ga"),
    _start("LoftQ", "loftq"),
    Refusal(
        tr("any other start of its own"),
        START_FIELD,
        lambda value: not _is_known_start(value),
        tr("it is not known here whether that initialisation changed the base"),
        _CONVERT,
    ),
    Refusal(
        tr("fused q, k, v (enable_lora)"),
        "enable_lora",
        bool,
        tr("it is for fused q, k, v matrices, which PEFT knew before 0.3 only"),
        tr("merge it with PEFT 0.2"),
    ),
    Refusal(
        tr("activated LoRA"),
        "alora_invocation_tokens",
        lambda value: value is not None,
        tr("activated LoRA acts on some positions only, so it cannot be merged"),
        _USE_UNMERGED,
    ),
    Refusal(
        "Arrow",
        "arrow_config",
        is_configured,
        tr("Arrow routes between adapters"),
        _USE_UNMERGED,
        ("lora_arrow",),
    ),
    Refusal(
        "Megatron",
        "megatron_config",
        bool,
        tr("it belongs to a Megatron model"),
        tr("convert it to an adapter of the Hugging Face model first"),
    ),
)


def find_refusal(fields: Mapping[str, Any]) -> Refusal | None:
    """The first refusal that a configuration meets."""
    defaults = {"peft_type": "LORA"}
    return next(
        (
            refused
            for refused in REFUSED
            if refused.applies(fields.get(refused.field, defaults.get(refused.field)))
        ),
        None,
    )


def find_key_refusal(key: str) -> Refusal | None:
    """The refused kind to which a tensor belongs, by its name."""
    return next((r for r in REFUSED if any(mark in key for mark in r.marks)), None)
