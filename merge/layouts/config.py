"""``config.json``: what it says of a model, and what it says of a merged one.

``config.json`` has two spellings of some things: transformers 5 writes ``rope_parameters`` and
``dtype``, everything before it ``rope_theta``, ``rope_scaling`` and ``torch_dtype``. Both are read;
the older one is written, because transformers 5 and all older readers understand it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import LayoutError
from ..messages import compose, join, tr
from ..untrusted.value_kinds import (
    FLAG,
    LENGTH,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    ValueKinds,
    optional,
    require_kinds,
    require_number,
)

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
DEFAULT_ROPE_THETA = 10000.0
# LLaMA-like architectures that are LLaMA tensor for tensor. (Mistral is too, but for its window.)
LLAMA_MODEL_TYPES = ("llama",)
# A LLaMA with more beside it.
EXTENDED_MODEL_TYPES = (*LLAMA_MODEL_TYPES, "llava")
# The names of its class; the second is that of conversions of early 2023.
LLAMA_ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM")
# What is read of config.json beside the numbers that fix shapes.
_VALUES: ValueKinds = {
    "max_position_embeddings": optional(LENGTH),
    "rms_norm_eps": POSITIVE,
    "rope_parameters": optional(OBJECT),
    "rope_scaling": optional(OBJECT),
    "rope_theta": optional(POSITIVE),
    "tie_word_embeddings": optional(FLAG),
}
# What is read of the rotary positions, of every kind of scaling.
_ROTARY: ValueKinds = {
    **dict.fromkeys(("type", "rope_type"), optional(TEXT)),
    **dict.fromkeys(
        (
            *("rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
            *("attention_factor", "attn_factor", "beta_fast", "beta_slow"),
        ),
        optional(POSITIVE),
    ),
    "extrapolation_factor": optional(NUMBER),
    "original_max_position_embeddings": optional(LENGTH),
}


def is_llama(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of a LLaMA tensor for tensor, which has no biases."""
    biases = config.get("attention_bias") or config.get("mlp_bias")
    return config.get("model_type") in LLAMA_MODEL_TYPES and not biases


def require_decoder(config: Mapping[str, Any], source: object) -> None:
    """Raise ``LayoutError`` unless a ``config.json`` (at ``source``) describes a decoder."""
    kind = config.get("model_type")
    if isinstance(kind, str) and not config.get("is_encoder_decoder"):
        return
    raise LayoutError(
        tr("config.json does not describe a model that adapters can be merged into"),
        file=source,
        expected=tr('"model_type" of a decoder, such as "llama", "qwen2" or "mistral"'),
        found=tr("{kind!r}, an encoder with a decoder", kind=kind) if kind else repr(kind),
        remedy=tr("take config.json from the place where the weights are from"),
    )


def require_plain_llama(config: Mapping[str, Any], source: object) -> None:
    """Raise ``LayoutError`` for a model that has more beside a LLaMA, which GGUF cannot hold."""
    if config.get("model_type") not in LLAMA_MODEL_TYPES:
        raise LayoutError(
            tr("this model has more in it than a GGUF file of a LLaMA can hold"),
            file=source,
            expected=compose(
                '"model_type": {kinds}', kinds=join(tr(" or "), map(repr, LLAMA_MODEL_TYPES))
            ),
            found=repr(config.get("model_type")),
            remedy=tr("write --output_type huggingface, and use llama.cpp's own converters"),
        )


@dataclass(frozen=True)
class LlamaShape:
    """The numbers that fix every tensor's shape in a LLaMA, in the terms of ``config.json``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        source: object,
        model_types: tuple[str, ...] = LLAMA_MODEL_TYPES,
    ) -> LlamaShape:
        """Read the numbers from a ``config.json``; ``source`` is its path, for errors.

        Raises ``LayoutError`` when a number is missing, when heads are of an odd size, and when the
        architecture is another one.
        """
        if config.get("model_type") not in model_types:
            raise LayoutError(
                tr("this model is no LLaMA"),
                file=source,
                expected=tr(
                    '"model_type": {map}', map=join(tr(" or "), map(repr, LLAMA_MODEL_TYPES))
                ),
                found=repr(config.get("model_type")),
                remedy=tr(
                    "only LLaMA 1, LLaMA 2 and models of their architecture can be merged here"
                ),
            )
        hidden = require_number(config, "hidden_size", source)
        heads = require_number(config, "num_attention_heads", source)
        derived = {"num_key_value_heads": heads, "head_dim": hidden // heads}
        given = derived | {key: config[key] for key in derived if config.get(key)}
        head_dim = require_number(given, "head_dim", source)
        if head_dim % 2:
            raise LayoutError(
                tr("the heads are of a size that rotary positions cannot turn"),
                file=source,
                expected=tr(
                    '"head_dim", or "hidden_size" by "num_attention_heads": an even number'
                ),
                found=head_dim,
                remedy=tr("take this file from the place where the weights are from"),
            )
        return cls(
            hidden_size=hidden,
            intermediate_size=require_number(config, "intermediate_size", source),
            num_hidden_layers=require_number(config, "num_hidden_layers", source),
            num_attention_heads=heads,
            num_key_value_heads=require_number(given, "num_key_value_heads", source),
            head_dim=head_dim,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def q_rows(self) -> int:
        """Rows of ``q_proj``."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Rows of ``k_proj`` and ``v_proj``."""
        return self.num_key_value_heads * self.head_dim

    @property
    def layer_elements(self) -> int:
        """Elements of all decoder layers, vocabulary not counted."""
        attention = 2 * self.hidden_size * (self.q_rows + self.kv_rows)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)


_ROTARY_KEYS = ("rope_scaling", "rope_parameters")


def require_values(config: Mapping[str, Any], source: object) -> None:
    """Raise ``LayoutError`` unless what is read of a LLaMA's ``config.json`` is of its kind."""
    require_kinds(config, _VALUES, source)
    for key in _ROTARY_KEYS:
        require_kinds(config.get(key) or {}, _ROTARY, source, key)
    said = _find_rope_thetas(config)
    if len(set(said.values())) > 1:
        raise LayoutError(
            tr("config.json gives two bases of the rotary frequencies"),
            file=source,
            expected=tr("one rope_theta"),
            found=", ".join(f"{place} {theta:g}" for place, theta in said.items()),
            remedy=tr(
                "transformers 4 takes the one at the top level, transformers 5 the "
                "nested one: keep the one that the model was trained with"
            ),
        )


def require_no_biases(config: Mapping[str, Any], source: object) -> None:
    """Raise ``LayoutError`` for a LLaMA whose linear layers have biases."""
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise LayoutError(
                tr("this model is a LLaMA with biases, for which there is no place here"),
                file=source,
                expected=tr('"{key}": false', key=key),
                found=repr(config[key]),
                remedy=tr(
                    "merge adapters into it with --output_type huggingface; if its "
                    "weights have no biases, correct config.json"
                ),
            )


def require_named_llama(config: Mapping[str, Any], source: object) -> None:
    """Raise ``LayoutError`` when ``architectures`` contradicts a ``model_type`` of LLaMA's."""
    if config.get("model_type") in LLAMA_MODEL_TYPES:
        require_class(config, source, "LLaMA", LLAMA_ARCHITECTURES)


def require_class(
    config: Mapping[str, Any], source: object, kind: str, names: Sequence[str]
) -> None:
    """Raise ``LayoutError`` when ``architectures`` says none of ``names``, those of a ``kind``."""
    named = config.get("architectures")
    if named and (not isinstance(named, list) or named[0] not in names):
        raise LayoutError(
            tr(
                "config.json calls the model a {kind} and names the class of another one", kind=kind
            ),
            file=source,
            expected=tr('"architectures": ["{names}"]', names=names[0]),
            found=repr(named),
            remedy=tr(
                "write --output_type huggingface; if the weights are those of a "
                "plain {kind}, correct config.json",
                kind=kind,
            ),
        )


def get_rope_theta(config: Mapping[str, Any], default: float = DEFAULT_ROPE_THETA) -> float:
    """Base of the rotary frequencies, ``default`` when nothing is said.

    transformers 5 keeps it in ``rope_parameters``, and reads it from ``rope_scaling`` too.
    """
    return next(iter(_find_rope_thetas(config).values()), default)


def _find_rope_thetas(config: Mapping[str, Any]) -> dict[str, float]:
    """Every ``rope_theta`` that is given, by its place."""
    places = {"rope_theta": config} | {f"{key}.rope_theta": config.get(key) for key in _ROTARY_KEYS}
    return {
        place: float(fields["rope_theta"])
        for place, fields in places.items()
        if fields and fields.get("rope_theta")
    }


def get_rope_scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Scaling of the rotary positions, in the spelling before transformers 5, or None.

    ``type`` is its kind: where ``rope_type`` says another one, that counts, as in transformers.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    return {"type": kind} | {k: v for k, v in scaling.items() if k not in ("type", "rope_theta")}


def build_merged_config(
    config: Mapping[str, Any], vocab_size: int, dtype: str, tied: bool
) -> dict[str, Any]:
    """The ``config.json`` of a merged model, in the spelling that every reader understands.

    A quantization is not taken along: it was that of the weights an adapter was trained beside, and
    the weights here are whole.
    """
    moved = {"rope_parameters", "dtype", "auto_map", "_name_or_path", "quantization_config"}
    merged = {key: value for key, value in config.items() if key not in moved}
    if merged.get("model_type") in LLAMA_MODEL_TYPES and not merged.get("architectures"):
        merged["architectures"] = ["LlamaForCausalLM"]  # llama.cpp's converter goes by it
    return merged | {
        "rope_theta": get_rope_theta(config),
        "rope_scaling": get_rope_scaling(config),
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "vocab_size": vocab_size,
    }


def build_merged_decoder_config(
    config: Mapping[str, Any], vocab_size: int, dtype: str, tied: bool
) -> dict[str, Any]:
    """The ``config.json`` of a merged model that is no LLaMA: its owner's, in its own spelling."""
    dropped = {"dtype", "_name_or_path", "quantization_config"}
    merged = {key: value for key, value in config.items() if key not in dropped}
    changed = {"tie_word_embeddings": tied, "torch_dtype": dtype, "vocab_size": vocab_size}
    return merged | changed


def compute_rotary_frequencies(head_dim: int) -> list[float]:
    """The buffer ``inv_freq`` of a layer with LLaMA's own base: ``head_dim / 2`` numbers.

    transformers before 4.33 kept one in every layer's state dict (``LlamaRotaryEmbedding``).

    >>> compute_rotary_frequencies(4)
    [1.0, 0.01]
    """
    return [float(DEFAULT_ROPE_THETA) ** (-step / head_dim) for step in range(0, head_dim, 2)]


def with_token_ids(
    config: Mapping[str, Any], ids: Mapping[str, int | None], vocab_size: int
) -> dict[str, Any]:
    """Set ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` to what the tokenizer says.

    LLaMA conversions of early 2023 have 0 and 1 there, and such a model never stops. A list of
    several ends is kept, with the tokenizer's in it. Where the tokenizer has no padding, an id
    outside the vocabulary becomes null.
    """
    mended = dict(config)
    for key in ("bos_token_id", "eos_token_id"):
        wanted, given = ids.get(key), config.get(key)
        if wanted is None or given == wanted:
            continue
        if isinstance(given, list):
            mended[key] = given if wanted in given else [*given, wanted]
        else:
            mended[key] = wanted
    pad, wanted = config.get("pad_token_id"), ids.get("pad_token_id")
    if wanted is not None or not isinstance(pad, int) or not 0 <= pad < vocab_size:
        mended["pad_token_id"] = wanted
    return mended
