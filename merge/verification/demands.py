"""What the keys of a GGUF file must say, by ``config.json`` and the tokenizer's files.

Read from these here, beside the code that writes such files and without it. Keys are those that
llama.cpp reads of a LLaMA, with what it takes where one is missing (``llama-model.cpp``,
``llama-vocab.cpp``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..layouts.gguf.reading import ARCHITECTURE
from ..tokenizers.huggingface import CONFIG_NAME as TOKENIZER_CONFIG_NAME
from ..tokenizers.huggingface import MODEL_NAME, TokenizerFolder
from ..untrusted.strict_json import parse_json

# What transformers takes where config.json says nothing.
_CONTEXT_LENGTH, _EPS, _THETA = 2048, 1e-6, 10000.0
ID = "_token_id"
# Numbers of YaRN, by the names under which configurations have them.
_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "attn_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
_SCALING = (
    *("type", "factor", "original_context_length", "attn_factor", "alpha"),
    *dict.fromkeys(_YARN.values()),
    "yarn_log_multiplier",
)
# Kinds of scaling of which it is known here what llama.cpp makes of them.
KNOWN_SCALING = ("default", "linear", "yarn", "dynamic", "llama3")


@dataclass(frozen=True)
class Described:
    """What the inputs say of a model.

    ``config`` is ``config.json``, from ``config_file``; nothing is held against its keys in
    ``assumed``. ``tokenizer`` is the one that the rows follow, where an input has one.
    """

    config: Mapping[str, Any]
    config_file: Path
    tokenizer: TokenizerFolder | None
    assumed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Demand:
    """What a key may say; the first is told as expected. None stands for a key that is missing.

    ``missing`` is what llama.cpp takes where the key is missing. ``source`` is where it is said.
    """

    permitted: tuple[object, ...]
    source: Path
    missing: object = None


def demanded(rows: int, described: Described) -> dict[str, Demand]:
    """What each key must say of which the inputs say something."""
    special = _special(described, described.tokenizer) if described.tokenizer else ()
    return dict((*_sizes(rows, described), *_rotary(described), *special))


def _sizes(rows: int, described: Described) -> Iterator[tuple[str, Demand]]:
    """Numbers that are whole, or the norm's, straight from ``config.json``."""
    config, source = described.config, described.config_file
    hidden, heads = whole(config.get("hidden_size")), whole(config.get("num_attention_heads"))
    head_dim, even = width_of_a_head(config), hidden // heads if hidden and heads else None
    for name, wanted, missing in (
        ("block_count", whole(config.get("num_hidden_layers")), None),
        ("context_length", whole(config.get("max_position_embeddings") or _CONTEXT_LENGTH), None),
        ("embedding_length", hidden, None),
        ("feed_forward_length", whole(config.get("intermediate_size")), None),
        ("attention.head_count", heads, None),
        ("attention.head_count_kv", whole(config.get("num_key_value_heads")) or heads, heads),
        ("attention.key_length", head_dim, even),
        ("attention.value_length", head_dim, even),
        ("rope.dimension_count", head_dim, head_dim),
        ("vocab_size", rows, rows),
    ):
        is_assumed = name == "context_length" and "max_position_embeddings" in described.assumed
        if wanted is not None and not is_assumed:
            yield _key(name), Demand((wanted,), source, missing)
    eps = number(config.get("rms_norm_eps", _EPS))
    if eps is not None:
        yield _key("attention.layer_norm_rms_epsilon"), Demand((eps,), source)


def _rotary(described: Described) -> Iterator[tuple[str, Demand]]:
    """Base and scaling of the rotary positions, in either spelling of ``config.json``."""
    config, source = described.config, described.config_file
    scaling = rotary_scaling(config)
    theta = rotary_base(config)
    if theta is not None:
        yield _key("rope.freq_base"), Demand((theta,), source, _THETA)
    kind = scaling_kind(scaling)
    factor = number(scaling.get("factor"))
    wanted: dict[str, object] = {}
    if kind in ("linear", "yarn"):
        wanted = {"type": kind, "factor": factor}
    if kind == "yarn":
        length = scaling.get("original_max_position_embeddings")
        length = length or config.get("max_position_embeddings") or _CONTEXT_LENGTH
        wanted["original_context_length"] = whole(length)
        for theirs, ours in reversed(_YARN.items()):
            if scaling.get(theirs) is not None:
                wanted[ours] = number(scaling[theirs])
    if kind not in KNOWN_SCALING:
        return
    for name in _SCALING:
        permitted: tuple[object, ...] = (wanted.get(name),)
        if not wanted and name in ("type", "factor"):
            permitted = (None, "none") if name == "type" else (None, 1.0)
        yield _key(f"rope.scaling.{name}"), Demand(permitted, source)
    old = (None, factor) if kind == "linear" else (None, 1.0)
    yield _key("rope.scale_linear"), Demand(old, source)


def rotary_scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``config.json`` says of rotary positions beyond their base, in either spelling."""
    nested = config.get("rope_scaling") or config.get("rope_parameters")
    return nested if isinstance(nested, Mapping) else {}


def scaling_kind(scaling: Mapping[str, Any]) -> object:
    """``linear`` and the like; ``default`` where nothing is scaled."""
    return scaling.get("rope_type", scaling.get("type", "default"))


def _special(described: Described, tokenizer: TokenizerFolder) -> Iterator[tuple[str, Demand]]:
    """Ids of special tokens, and what is put around a text.

    The padding id is ``config.json``'s, as llama.cpp's converter has it, or the tokenizer's; it may
    be missing, because llama.cpp does without.
    """
    config = described.config
    for name, key, default in (("bos", "bos", 1), ("eos", "eos", 2), ("unk", "unknown", 0)):
        token = getattr(tokenizer, f"{name}_token")
        if token is not None:
            ids = [token.id]
            if name == "unk":
                ids += filter(None, [whole(config.get("unk_token_id"))])
            yield f"tokenizer.ggml.{key}{ID}", Demand(tuple(ids), tokenizer.path, default)
    ids = [tokenizer.pad_token.id] if tokenizer.pad_token is not None else []
    stated = config.get("pad_token_id")
    ids += [stated] if isinstance(stated, int) and stated >= 0 else []
    if ids:
        yield f"tokenizer.ggml.padding{ID}", Demand((*ids, None), tokenizer.path)
    yield "tokenizer.ggml.model", Demand(("llama",), tokenizer.path)
    said = _tokenizer_config(tokenizer)
    for name, key, default in (
        ("add_bos_token", "add_bos_token", True),
        ("add_eos_token", "add_eos_token", False),
        ("add_prefix_space", "add_space_prefix", _puts_a_space_before(tokenizer)),
    ):
        value = said.get(name)
        wanted = default if value is None else value
        missing = key != "add_eos_token"
        if isinstance(wanted, bool):
            yield f"tokenizer.ggml.{key}", Demand((wanted,), tokenizer.path, missing)


def _tokenizer_config(tokenizer: TokenizerFolder) -> dict[str, Any]:
    content = tokenizer.contents.get(TOKENIZER_CONFIG_NAME)
    return parse_json(content, tokenizer.path / TOKENIZER_CONFIG_NAME) if content else {}


def _puts_a_space_before(tokenizer: TokenizerFolder) -> bool:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString(tokenizer.contents[MODEL_NAME])
    return bool(model.normalizer_spec.add_dummy_prefix)


def width_of_a_head(config: Mapping[str, Any]) -> int | None:
    """Elements of a head, as ``config.json`` says, or by its width and number of heads."""
    hidden, heads = whole(config.get("hidden_size")), whole(config.get("num_attention_heads"))
    return whole(config.get("head_dim")) or (hidden // heads if hidden and heads else None)


def rotary_base(config: Mapping[str, Any]) -> float | None:
    """Base of the rotary frequencies."""
    scaling = rotary_scaling(config)
    return number(config.get("rope_theta") or scaling.get("rope_theta") or _THETA)


def _key(name: str) -> str:
    return f"{ARCHITECTURE}.{name}"


def whole(value: object) -> int | None:
    """A positive whole number of a configuration, or None for anything else."""
    found = number(value)
    return int(found) if found is not None and found > 0 and found.is_integer() else None


def number(value: object) -> float | None:
    """A number of a configuration that float32 can hold, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 3e38:
        return None
    return float(value)
