"""THE registry of adapter kinds: what is merged. What is refused and why is in ``refusals.py``.

The readers of ``adapter_config.json`` and of the weights take fields and key shapes from here, and
``docs/adapters.md`` is generated from here, so the three cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..layouts.replicated_layers import FIELD
from ..messages import tr
from .peft_methods import VARIANTS
from .refusals import REFUSED

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
    detected_by: str
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
        tr("the scaling is `lora_alpha / sqrt(r)`"),
        ("use_rslora",),
    ),
    Kind(
        tr("rank and alpha patterns"),
        "0.6",
        "`rank_pattern`, `alpha_pattern`",
        tr(
            "rank and alpha of a module are those of the first pattern that matches its name's "
            "end; where PEFT's releases differ, by `peft_version`, else by the shapes of the "
            "matrices"
        ),
        ("rank_pattern", "alpha_pattern"),
    ),
    Kind(
        tr("chosen layers"),
        "0.2",
        "`target_modules`, `exclude_modules`, `layers_to_transform`, `layers_pattern`",
        tr("the tensors in the file decide; if a list names modules, they must be those"),
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    ),
    Kind(
        tr("layer replication"),
        "0.10",
        "`layer_replication`",
        tr(
            "the result has a copy of the base's layer for each number in the ranges, and the "
            "LoRA is added to each copy"
        ),
        (FIELD,),
    ),
    Kind(
        "fan_in_fan_out",
        "0.2",
        "`fan_in_fan_out`",
        tr(
            "no effect on linear layers; GPT-2's Conv1D stores its matrices transposed, so the "
            "product is transposed too"
        ),
        ("fan_in_fan_out",),
    ),
    Kind(
        tr("embedding LoRA"),
        "0.3",
        "`lora_embedding_A`, `lora_embedding_B`",
        tr("`W += scaling · (B A)ᵀ`; other rows than the base's: `--vocab_mismatch`"),
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
        tr(
            "after the sum, each output row (of embeddings: each column) is scaled to its trained "
            "norm; the order of several adapters matters"
        ),
        ("use_dora",),
        {
            "lora_magnitude_vector": rf"{_MODULE}lora_magnitude_vector"
            r"(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"
        },
    ),
    Kind(
        tr("bias of lora_B"),
        "0.14",
        "`lora_bias`, `lora_B.bias`",
        tr("`bias += scaling · lora_B.bias`; the base must have that bias"),
        ("lora_bias",),
        {"lora_bias": rf"{_MODULE}lora_B{_NAME}\.bias"},
    ),
    Kind(
        tr("trained biases"),
        "0.2",
        tr('`bias` is `"all"` or `"lora_only"`'),
        tr("the bias is replaced"),
        ("bias",),
    ),
    Kind(
        tr("whole modules"),
        "0.2",
        tr("`modules_to_save`; plain names, `modules_to_save`, `original_module`"),
        tr(
            "every tensor of the module is replaced by the trained copy; the three keys of PEFT "
            "0.21 are checked against each other, and the untrained copy is ignored"
        ),
        ("modules_to_save",),
        {
            "modules_to_save": rf"{_MODULE}modules_to_save\.(?P<rest>.+)",
            "original_module": rf"{_MODULE}original_module\.(?P<rest>.+)",
        },
    ),
    Kind(
        tr("the base's own copy"),
        "0.6",
        tr("`base_layer` beside a LoRA, as PEFT saves a resized vocabulary"),
        tr("the copy replaces the base's tensor, then the LoRA is added"),
        (),
        {
            "base_layer": rf"{_MODULE}base_layer\.(?P<rest>weight|bias)",
        },
    ),
    Kind(
        tr("trainable tokens"),
        "0.15",
        "`trainable_token_indices`, `token_adapter.trainable_tokens_delta`",
        tr("the rows of these tokens are replaced, on both sides of tied embeddings"),
        ("trainable_token_indices",),
        {
            "trainable_tokens_delta": rf"{_MODULE}trainable_tokens_delta{_NAME}",
            "trainable_tokens_original": rf"{_MODULE}trainable_tokens_original{_NAME}",
        },
    ),
    Kind(
        tr("tied embeddings"),
        "0.16",
        tr("`tie_word_embeddings` of the base, `ensure_weight_tying`"),
        tr("when the two sides end up different, both are written and the model is untied"),
        ("ensure_weight_tying",),
    ),
)
# What is left when no part above is in the name: a whole tensor of the base.
PLAIN_KEY = r"(?P<module>.+)\.(?P<rest>weight|bias)"

# Fields that change nothing about how a finished adapter is added to its base.
HARMLESS = frozenset(
    [
        # of PEFT's releases up to 0.21
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
        # of transformers, which copies its own configuration's fields into others at times
        "_from_model_config",
        "_name_or_path",
        "model_type",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "use_cache",
        # of trainers (ms-swift, LLaMA-Factory, axolotl, unsloth): how it was trained
        "gradient_checkpointing",
        "lora_dtype",
        "lorap_emb_lr",
        "lorap_lr_ratio",
        "loraplus_lr_embedding",
        "loraplus_lr_ratio",
        "max_seq_length",
        "random_state",
        "unsloth_version",
        "use_gradient_checkpointing",
    ]
)

KNOWN_FIELDS = (
    HARMLESS
    | {name for kind in HANDLED for name in kind.fields}
    | {refusal.field for refusal in REFUSED}
    | {variant.field for variant in VARIANTS}
)
