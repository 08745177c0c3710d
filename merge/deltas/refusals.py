"""Kinds of adapters that are not merged: how they are detected, why, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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


TRAINABLE_TOKENS = "TRAINABLE_TOKENS"
_MERGE_WITH_PEFT = "merge it with PEFT's own merge_and_unload on a machine with enough memory"
_USE_UNMERGED = "use it unmerged, with PEFT"
_CONVERT = (
    "save it once with PEFT's path_initial_model_for_weight_conversion, which turns it into a "
    "plain LoRA"
)
_RESIDUAL = (
    "give the residual base that was saved with the run, and write true for init_lora_weights into "
    "this file; or merge it with PEFT's merge_and_unload on the plain base, which makes the start "
    "anew"
)
_OTHER_BASE = (
    "it was trained relative to a base that the initialisation changed, so on the plain base it "
    "gives another model"
)
# Starts that leave the base as it is.
_PLAIN_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")


def _is_plain_start(value: object) -> bool:
    """Whether ``init_lora_weights`` leaves the base alone: yes or no, or one of the names."""
    named = isinstance(value, str) and value.lower() in _PLAIN_STARTS
    return value is None or isinstance(value, bool) or named


def _is_set(value: object) -> bool:
    """Whether a kind with a configuration of its own is in use; ``{}`` is one of defaults."""
    return value is not None and value is not False


def _type(name: str, peft_type: str, reason: str, remedy: str, *marks: str) -> Refusal:
    return Refusal(name, "peft_type", lambda value: value == peft_type, reason, remedy, marks)


def _start(name: str, *starts: str, remedy: str = _CONVERT) -> Refusal:
    def applies(value: object) -> bool:
        return isinstance(value, str) and value.lower().startswith(starts)

    return Refusal(name, "init_lora_weights", applies, _OTHER_BASE, remedy)


REFUSED = (
    _type(
        "AdaLoRA",
        "ADALORA",
        "its product has a third factor",
        _MERGE_WITH_PEFT,
        "lora_E",
        "ranknum",
    ),
    _type("IA³", "IA3", "it scales activations and adds nothing", _MERGE_WITH_PEFT, "ia3_l"),
    _type("VeRA", "VERA", "its matrices are random and shared", _MERGE_WITH_PEFT, "vera_lambda"),
    _type("LoHa", "LOHA", "its delta is a Hadamard product", _MERGE_WITH_PEFT, "hada_"),
    _type("LoKr", "LOKR", "its delta is a Kronecker product", _MERGE_WITH_PEFT, "lokr_"),
    _type(
        "X-LoRA", "XLORA", "it mixes several adapters anew for each token", _USE_UNMERGED, "xlora"
    ),
    _type("prefix tuning", "PREFIX_TUNING", "it is no change of weights", _USE_UNMERGED),
    _type("prompt tuning", "PROMPT_TUNING", "it is no change of weights", _USE_UNMERGED),
    _type("p-tuning", "P_TUNING", "it is no change of weights", _USE_UNMERGED, "prompt_embeddings"),
    Refusal(
        "any other peft_type",
        "peft_type",
        lambda value: value not in ("LORA", TRAINABLE_TOKENS),
        "this kind of adapter is no LoRA",
        _MERGE_WITH_PEFT + ", if PEFT can merge this kind at all",
    ),
    _start("PiSSA", "pissa", remedy=_RESIDUAL),
    _start("OLoRA", "olora", remedy=_RESIDUAL),
    _start("CorDA", "corda"),
    _start("LoRA-GA", "lora_ga"),
    _start("LoftQ", "loftq"),
    Refusal(
        "any other start of its own",
        "init_lora_weights",
        lambda value: not _is_plain_start(value),
        "it is not known here whether that initialisation changed the base",
        _CONVERT,
    ),
    Refusal(
        "fused q, k, v (enable_lora)",
        "enable_lora",
        bool,
        "it is for fused q, k, v matrices",
        _MERGE_WITH_PEFT,
    ),
    Refusal(
        "layer replication",
        "layer_replication",
        bool,
        "it repeats layers of the base",
        _MERGE_WITH_PEFT,
    ),
    Refusal(
        "target_parameters",
        "target_parameters",
        bool,
        "it adds to bare parameters such as experts",
        _MERGE_WITH_PEFT,
    ),
    Refusal(
        "activated LoRA",
        "alora_invocation_tokens",
        lambda value: value is not None,
        "activated LoRA acts on some positions only, so it cannot be merged",
        _USE_UNMERGED,
    ),
    Refusal("QALoRA", "use_qalora", bool, "QALoRA pools the inputs of lora_A", _MERGE_WITH_PEFT),
    Refusal("BD-LoRA", "use_bdlora", _is_set, "its factors are block-diagonal", _MERGE_WITH_PEFT),
    Refusal(
        "Arrow",
        "arrow_config",
        _is_set,
        "Arrow routes between adapters",
        _USE_UNMERGED,
        ("lora_arrow",),
    ),
    Refusal(
        "KaSA",
        "kasa_config",
        _is_set,
        "KaSA changes the base and the product",
        _MERGE_WITH_PEFT,
        ("lora_diag",),
    ),
    Refusal(
        "VeLoRA",
        "velora_config",
        _is_set,
        "VeLoRA is not known here",
        _MERGE_WITH_PEFT,
        ("velora",),
    ),
    Refusal(
        "MonteCLoRA",
        "monteclora_config",
        _is_set,
        "MonteCLoRA samples its weights",
        _MERGE_WITH_PEFT,
        ("monteclora",),
    ),
    Refusal(
        "Megatron",
        "megatron_config",
        bool,
        "it belongs to a Megatron model",
        "convert it to an adapter of the Hugging Face model first",
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
