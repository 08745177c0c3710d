"""Adapters that PEFT itself merges here, one module at a time: which they are.

A plain LoRA and its kinds in ``kinds.py`` are merged by this program; any other method of PEFT, and
LoRA's variants below, by PEFT's own code for one layer (``merge/peft_layers/``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..messages import tr

TRAINABLE_TOKENS = "TRAINABLE_TOKENS"
# The field that says from which values a LoRA was trained.
START_FIELD = "init_lora_weights"


@dataclass(frozen=True)
class Variant:
    """A variant of LoRA that PEFT merges: its name, and the field that says it is in use."""

    name: str
    field: str
    applies: Callable[[Any], bool]
    result: str


def is_configured(value: object) -> bool:
    """Whether a kind with a configuration of its own is in use; ``{}`` is one of defaults."""
    return value is not None and value is not False


def _start(name: str, start: str, result: str) -> Variant:
    return Variant(
        name,
        START_FIELD,
        lambda value: isinstance(value, str) and value.lower() == start,
        result,
    )


_RESIDUAL = tr("PEFT takes the start from the plain base again, then adds the trained matrices")
_BY_PEFT = tr("as PEFT merges it")
VARIANTS = (
    _start("PiSSA", "pissa", _RESIDUAL),
    _start("OLoRA", "olora", _RESIDUAL),
    Variant(
        "target_parameters",
        "target_parameters",
        bool,
        tr("the product is added to bare parameters, such as fused experts"),
    ),
    Variant("QALoRA", "use_qalora", bool, _BY_PEFT),
    Variant("BD-LoRA", "use_bdlora", is_configured, _BY_PEFT),
    Variant("KaSA", "kasa_config", is_configured, _BY_PEFT),
    Variant("VeLoRA", "velora_config", is_configured, _BY_PEFT),
    Variant(
        "MonteCLoRA", "monteclora_config", is_configured, tr("as PEFT merges it, without sampling")
    ),
)
# Parts of tensor names that give a method away where adapter_config.json does not say it.
_MARKS = {
    "IA³": ("ia3_l",),
    "VeRA": ("vera_",),
    "LoHa": ("hada_",),
    "LoKr": ("lokr_",),
    "KaSA": ("lora_diag",),
    "VeLoRA": ("velora",),
    "MonteCLoRA": ("monteclora",),
}


def find_method(fields: Mapping[str, Any]) -> str | None:
    """The method, or the variant of LoRA, that PEFT has to merge; None for what is merged here."""
    kind = fields.get("peft_type", "LORA")
    if kind not in ("LORA", TRAINABLE_TOKENS):
        return str(kind)
    return next((v.name for v in VARIANTS if v.applies(fields.get(v.field))), None)


def find_method_of_tensor(key: str) -> str | None:
    """The method to which a tensor belongs, by its name."""
    return next((n for n, marks in _MARKS.items() if any(mark in key for mark in marks)), None)
