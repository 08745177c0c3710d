"""THE registry of adapter kinds: what is merged, and what is refused and why.

The readers of ``adapter_config.json`` and of the weights take fields and key shapes from here, and
``docs/adapters.md`` is generated from here, so the three cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# A module's name, and the adapter's name that a raw training dict puts behind the part.
_MODULE = r"(?P<module>.+)\."
_NAME = r"(?:\.(?P<adapter>[^.]+))?"


@dataclass(frozen=True)
class Kind:
    """Something that an adapter can bring and that is merged.

    ``fields`` of ``adapter_config.json`` belong to it; ``keys`` are the shapes of its tensors'
    names, by part, as regular expressions with the groups ``module``, ``adapter`` and ``rest``.
    """

    name: str
    since: str
    told_by: str
    result: str
    fields: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)


HANDLED = (
    Kind(
        "LoRA",
        "0.2",
        "`lora_A`, `lora_B`; `r`, `lora_alpha`",
        "`W += lora_alpha / r · B A`",
        ("r", "lora_alpha", "lora_dropout"),
        {
            "lora_A": rf"{_MODULE}lora_A{_NAME}\.weight",
            "lora_B": rf"{_MODULE}lora_B{_NAME}\.weight",
        },
    ),
    Kind(
        "rsLoRA",
        "0.8",
        "`use_rslora`",
        "the scaling is `lora_alpha / sqrt(r)`",
        ("use_rslora",),
    ),
    Kind(
        "rank and alpha patterns",
        "0.6",
        "`rank_pattern`, `alpha_pattern`",
        "rank and alpha of a module are those of the first pattern that matches its name's end",
        ("rank_pattern", "alpha_pattern"),
    ),
    Kind(
        "chosen layers",
        "0.2",
        "`target_modules`, `exclude_modules`, `layers_to_transform`, `layers_pattern`",
        "the tensors in the file decide; these fields only said where to train",
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    ),
    Kind(
        "fan_in_fan_out",
        "0.2",
        "`fan_in_fan_out`",
        "nothing for linear layers; GPT-2's Conv1D keeps its matrices transposed, and so is the "
        "product",
        ("fan_in_fan_out",),
    ),
    Kind(
        "embedding LoRA",
        "0.3",
        "`lora_embedding_A`, `lora_embedding_B`",
        "`W += scaling · (B A)ᵀ`; other rows than the base's: `--vocab_mismatch`",
        (),
        {
            "lora_embedding_A": rf"{_MODULE}lora_embedding_A{_NAME}",
            "lora_embedding_B": rf"{_MODULE}lora_embedding_B{_NAME}",
        },
    ),
    Kind(
        "DoRA",
        "0.9",
        "`use_dora`, `lora_magnitude_vector`",
        "after the sum, each output row (of embeddings: each column) is scaled to its trained "
        "norm; the order of several adapters matters",
        ("use_dora",),
        {
            "lora_magnitude_vector": rf"{_MODULE}lora_magnitude_vector"
            r"(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"
        },
    ),
    Kind(
        "bias of lora_B",
        "0.14",
        "`lora_bias`, `lora_B.bias`",
        "`bias += scaling · lora_B.bias`; the base must have that bias",
        ("lora_bias",),
        {"lora_bias": rf"{_MODULE}lora_B{_NAME}\.bias"},
    ),
    Kind(
        "trained biases",
        "0.2",
        '`bias` is `"all"` or `"lora_only"`',
        "the bias is replaced",
        ("bias",),
    ),
    Kind(
        "whole modules",
        "0.2",
        "`modules_to_save`; plain names, `modules_to_save`, `original_module`",
        "every tensor of the module is replaced by the trained copy; the three keys of PEFT 0.21 "
        "are checked against each other, and the untrained copy is left aside",
        ("modules_to_save",),
        {
            "modules_to_save": rf"{_MODULE}modules_to_save\.(?P<rest>.+)",
            "original_module": rf"{_MODULE}original_module\.(?P<rest>.+)",
        },
    ),
    Kind(
        "the base's own copy",
        "0.6",
        "`base_layer` beside a LoRA, as PEFT saves a resized vocabulary",
        "the copy replaces the base's tensor, then the LoRA is added",
        (),
        {
            "base_layer": rf"{_MODULE}base_layer\.(?P<rest>weight|bias)",
        },
    ),
    Kind(
        "trainable tokens",
        "0.15",
        "`trainable_token_indices`, `token_adapter.trainable_tokens_delta`",
        "the rows of these tokens are replaced, on both sides of tied embeddings",
        ("trainable_token_indices",),
        {
            "trainable_tokens_delta": rf"{_MODULE}trainable_tokens_delta{_NAME}",
            "trainable_tokens_original": rf"{_MODULE}trainable_tokens_original{_NAME}",
        },
    ),
    Kind(
        "tied embeddings",
        "0.16",
        "`tie_word_embeddings` of the base, `ensure_weight_tying`",
        "when the two sides end up different, both are written and the model is untied",
        ("ensure_weight_tying",),
    ),
)
# What is left when no part above is in the name: a whole tensor of the base.
PLAIN_KEY = r"(?P<module>.+)\.(?P<rest>weight|bias)"

# Fields that change nothing about how a finished adapter is added to its base.
HARMLESS = frozenset(
    [
        "auto_mapping",
        "base_model_class",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "lora_ga_config",
        "loftq_config",
        "megatron_core",
        "merge_weights",
        "parent_library",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    ]
)


@dataclass(frozen=True)
class Refusal:
    """A kind of adapter that is not merged, how it is told, why, and what its owner can do.

    ``marks`` are parts of tensor names that give the kind away where its field does not.
    """

    name: str
    field: str
    applies: Callable[[Any], bool]
    reason: str
    remedy: str
    marks: tuple[str, ...] = ()


_MERGE_WITH_PEFT = "merge it with PEFT's own merge_and_unload on a machine with enough memory"
_USE_UNMERGED = "use it unmerged, with PEFT"
_CONVERT = (
    "save it once with PEFT's path_initial_model_for_weight_conversion, which turns it into a "
    "plain LoRA"
)
_OTHER_BASE = (
    "it was trained relative to a base that the initialisation changed, so on the plain base it "
    "gives another model"
)
# Starts that leave the base as it is.
_PLAIN_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")


def _type(name: str, peft_type: str, reason: str, remedy: str, *marks: str) -> Refusal:
    return Refusal(name, "peft_type", lambda value: value == peft_type, reason, remedy, marks)


def _start(name: str, *starts: str) -> Refusal:
    def applies(value: object) -> bool:
        return isinstance(value, str) and value.lower().startswith(starts)

    return Refusal(name, "init_lora_weights", applies, _OTHER_BASE, _CONVERT)


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
        lambda value: value != "LORA",
        "this kind of adapter is no LoRA",
        _MERGE_WITH_PEFT + ", if PEFT can merge this kind at all",
    ),
    _start("PiSSA", "pissa"),
    _start("OLoRA", "olora"),
    _start("CorDA", "corda"),
    _start("LoRA-GA", "lora_ga"),
    _start("LoftQ", "loftq"),
    Refusal(
        "any other start of its own",
        "init_lora_weights",
        lambda value: isinstance(value, str) and value.lower() not in _PLAIN_STARTS,
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
    Refusal("BD-LoRA", "use_bdlora", bool, "its factors are block-diagonal", _MERGE_WITH_PEFT),
    Refusal(
        "Arrow",
        "arrow_config",
        bool,
        "Arrow routes between adapters",
        _USE_UNMERGED,
        ("lora_arrow",),
    ),
    Refusal(
        "KaSA",
        "kasa_config",
        bool,
        "KaSA changes the base and the product",
        _MERGE_WITH_PEFT,
        ("lora_diag",),
    ),
    Refusal(
        "VeLoRA", "velora_config", bool, "VeLoRA is not known here", _MERGE_WITH_PEFT, ("velora",)
    ),
    Refusal(
        "MonteCLoRA",
        "monteclora_config",
        bool,
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

# A field that is not known here is refused when its name has one of these marks of arithmetic.
ARITHMETIC_MARKS = ("use_", "lora", "_config", "alpha", "rank", "scal", "pattern", "target", "init")

KNOWN_FIELDS = (
    HARMLESS
    | {name for kind in HANDLED for name in kind.fields}
    | {refusal.field for refusal in REFUSED}
)


def refusal(fields: Mapping[str, Any]) -> Refusal | None:
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


def changes_arithmetic(field_name: str) -> bool:
    """Whether a field that is not known here may change how the adapter is added."""
    return any(mark in field_name for mark in ARITHMETIC_MARKS)


def foreign(key: str) -> Refusal | None:
    """The refused kind to which a tensor belongs, by its name."""
    return next((r for r in REFUSED if any(mark in key for mark in r.marks)), None)
