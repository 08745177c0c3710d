"""``config.json``: what it says of a model, and what it says of a merged one.

``config.json`` has two spellings of some things: transformers 5 writes ``rope_parameters`` and
``dtype``, everything before it ``rope_theta``, ``rope_scaling`` and ``torch_dtype``. Both are read;
the older one is written, because transformers 5 and all older readers understand it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LayoutError
from ..json_text import read_json

CONFIG_NAME = "config.json"
DEFAULT_ROPE_THETA = 10000.0
# LLaMA-like architectures that are LLaMA tensor for tensor. (Mistral is too, but for its window.)
LLAMA_MODEL_TYPES = ("llama",)
# A LLaMA with more beside it.
EXTENDED_MODEL_TYPES = (*LLAMA_MODEL_TYPES, "llava")
# Beyond every model, and small enough to make a list of its tensors.
_LARGEST = 1 << 40
_MOST = {"num_hidden_layers": 10_000, "n_layers": 10_000}


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
        "config.json does not describe a model that adapters can be merged into",
        file=source,
        expected='"model_type" of a decoder, such as "llama", "qwen2" or "mistral"',
        found=f"{kind!r}, an encoder with a decoder" if kind else repr(kind),
        remedy="take config.json from the place where the weights are from",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a base model. Raises ``LayoutError`` when there is none."""
    path = folder / CONFIG_NAME
    if path.is_file():
        return read_json(path)
    found, remedy = "no config.json", "give the folder that holds config.json and the weights"
    if (folder / "params.json").is_file():
        found = "Meta's params.json, but not the weights that belong to it (consolidated.*.pth)"
        remedy = "give either Meta's folder or Hugging Face's, each with its own weights"
    if any(folder.glob("*.gguf")):
        found, remedy = "GGUF, for llama.cpp", "give the folder of the model that it was made from"
    if (folder / "adapter_config.json").is_file():
        found, remedy = "an adapter (adapter_config.json)", "give adapters with --lora_model"
    raise LayoutError(
        "the base model's folder has no configuration",
        file=path,
        expected="a folder as Hugging Face transformers saves it, or as Meta distributes it",
        found=found,
        remedy=remedy,
    )


def require_plain_llama(config: Mapping[str, Any], source: object) -> None:
    """Raise ``LayoutError`` for a model that has more beside a LLaMA, which GGUF cannot hold."""
    if config.get("model_type") not in LLAMA_MODEL_TYPES:
        raise LayoutError(
            "this model has more in it than a GGUF file of a LLaMA can hold",
            file=source,
            expected=f'"model_type": {" or ".join(map(repr, LLAMA_MODEL_TYPES))}',
            found=repr(config.get("model_type")),
            remedy="write --output_type huggingface, and use llama.cpp's own converters",
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

        Raises ``LayoutError`` when a number is missing or the architecture is another one.
        """
        if config.get("model_type") not in model_types:
            raise LayoutError(
                "this model is no LLaMA",
                file=source,
                expected=f'"model_type": {" or ".join(map(repr, LLAMA_MODEL_TYPES))}',
                found=repr(config.get("model_type")),
                remedy="only LLaMA 1, LLaMA 2 and models of their architecture can be merged here",
            )
        _require_rotary(config, source)
        hidden = required_number(config, "hidden_size", source)
        heads = required_number(config, "num_attention_heads", source)
        derived = {"num_key_value_heads": heads, "head_dim": hidden // heads}
        given = derived | {key: config[key] for key in derived if config.get(key)}
        return cls(
            hidden_size=hidden,
            intermediate_size=required_number(config, "intermediate_size", source),
            num_hidden_layers=required_number(config, "num_hidden_layers", source),
            num_attention_heads=heads,
            num_key_value_heads=required_number(given, "num_key_value_heads", source),
            head_dim=required_number(given, "head_dim", source),
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


def required_number(config: Mapping[str, Any], key: str, source: object) -> int:
    """A positive integer of a configuration, of a size that a model can have.

    Raises ``LayoutError`` when it is none.
    """
    value, most = config.get(key), _MOST.get(key, _LARGEST)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise LayoutError(
            "the configuration lacks a number that the model cannot do without",
            file=source,
            expected=f'"{key}": a positive integer, at most {most:,}',
            found=repr(value),
            remedy="take this file from the place where the weights are from",
        )
    return value


def _require_rotary(config: Mapping[str, Any], source: object) -> None:
    """Raise ``LayoutError`` unless what is said of rotary positions can be read."""
    for key in ("rope_scaling", "rope_parameters"):
        nested = config.get(key)
        if nested and not isinstance(nested, Mapping):
            raise _not_rotary(key, "an object or null", nested, source)
    nested = config.get("rope_parameters") or {}
    for theta in (config.get("rope_theta"), nested.get("rope_theta")):
        if theta and not is_positive(theta):
            raise _not_rotary("rope_theta", "a positive number", theta, source)


def _not_rotary(key: str, expected: str, found: object, source: object) -> LayoutError:
    return LayoutError(
        "the configuration says nothing sensible of the rotary positions",
        file=source,
        expected=f'"{key}": {expected}',
        found=repr(found),
        remedy="take this file from the place where the weights are from",
    )


def is_positive(value: object) -> bool:
    """Whether a value of a configuration is a positive number that float32 can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 3e38


def rope_theta(config: Mapping[str, Any]) -> float:
    """Base of the rotary frequencies, 10000 when nothing is said."""
    nested = config.get("rope_parameters") or {}
    return float(config.get("rope_theta") or nested.get("rope_theta") or DEFAULT_ROPE_THETA)


def rope_scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Scaling of the rotary positions, in the spelling before transformers 5, or None.

    Raises ``LayoutError`` for what is no object.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise LayoutError(
            "the configuration scales rotary positions in a way that says nothing",
            expected='"rope_scaling": {"type": ..., "factor": ...}, or null',
            found=repr(scaling),
            remedy="take config.json from the place where the weights are from",
        )
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    return {"type": kind} | {k: v for k, v in scaling.items() if k != "rope_theta"}


def merged_config(
    config: Mapping[str, Any], vocab_size: int, dtype: str, tied: bool
) -> dict[str, Any]:
    """The ``config.json`` of a merged model, in the spelling that every reader understands.

    A quantisation is not taken along: it was that of the weights an adapter was trained beside, and
    the weights here are whole.
    """
    moved = {"rope_parameters", "dtype", "auto_map", "_name_or_path", "quantization_config"}
    merged = {key: value for key, value in config.items() if key not in moved}
    if merged.get("model_type") in LLAMA_MODEL_TYPES and not merged.get("architectures"):
        merged["architectures"] = ["LlamaForCausalLM"]  # llama.cpp's converter goes by it
    return merged | {
        "rope_theta": rope_theta(config),
        "rope_scaling": rope_scaling(config),
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "vocab_size": vocab_size,
    }


def merged_decoder_config(
    config: Mapping[str, Any], vocab_size: int, dtype: str, tied: bool
) -> dict[str, Any]:
    """The ``config.json`` of a merged model that is no LLaMA: its owner's, in its own spelling."""
    dropped = {"dtype", "_name_or_path", "quantization_config"}
    merged = {key: value for key, value in config.items() if key not in dropped}
    changed = {"tie_word_embeddings": tied, "torch_dtype": dtype, "vocab_size": vocab_size}
    return merged | changed


def with_token_ids(
    config: Mapping[str, Any], ids: Mapping[str, int | None], vocab_size: int
) -> dict[str, Any]:
    """Set ``bos_token_id`` and ``eos_token_id`` to what the tokenizer says.

    LLaMA conversions of early 2023 have 0 and 1 there, and such a model never stops. A list of
    several ends is kept when it holds the tokenizer's. A padding id outside the vocabulary is
    replaced by the tokenizer's own.
    """
    mended = dict(config)
    for key in ("bos_token_id", "eos_token_id"):
        wanted, given = ids.get(key), config.get(key)
        listed = isinstance(given, list) and wanted in given
        if wanted is not None and given != wanted and not listed:
            mended[key] = wanted
    pad = config.get("pad_token_id")
    if not isinstance(pad, int) or not 0 <= pad < vocab_size:
        mended["pad_token_id"] = ids.get("pad_token_id")
    return mended
