"""The configuration of a result against that of the model which it was made of.

The weights of a model are right only together with the numbers beside them: ``rms_norm_eps``, say.
What a key means need not be known for that. Every one must be as it was, but for those that are
known to change no number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import VerificationError
from ..layouts import mixtral
from ..layouts.config import CONFIG_NAME, DEFAULT_ROPE_THETA
from ..layouts.gguf.reading import find_gguf_files
from ..layouts.model_folder import ModelFolder
from ..layouts.params import PARAMS_NAME
from ..messages import compose, tr
from ..tensors.lazy import Checkpoint
from ..untrusted.strict_json import read_json
from .expected import MergeInputs
from .findings import Findings

# Keys that say nothing of the arithmetic, or that ``check_configuration`` checks otherwise.
_IGNORED_KEYS = frozenset(
    (
        *("architectures", "auto_map", "_name_or_path", "transformers_version", "model_name"),
        *("dtype", "torch_dtype", "quantization_config", "use_cache", "initializer_range"),
        *("pretraining_tp", "gradient_checkpointing", "torchscript", "return_dict", "id2label"),
        *("output_attentions", "output_hidden_states", "task_specific_params", "label2id"),
        *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
        *("vocab_size", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
    )
)
_IGNORED_ENDINGS = ("_token_id", "dropout", "_pdrop")
# What a LLaMA's configuration leaves out, by transformers' ``LlamaConfig``.
_LLAMA_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
}
# The one number of a LLaMA that ``params.json`` does not say.
_CONTEXT = "max_position_embeddings"
# Kinds of rotary scaling that have keys in a GGUF file; and what is not read of such a file.
_GGUF_SCALING = ("linear", "yarn")
_NOT_READ = tr("rotary factors, scores and types of tokens, chat template and other metadata")
_LENGTH = "original_max_position_embeddings"
_RESTORE = tr("put back the configuration that belongs to these weights, or merge again")


def check_configuration(
    folder: Path, result: Checkpoint, inputs: MergeInputs, is_ours: bool, rows: int
) -> Findings:
    """Hold ``config.json``, ``params.json`` or the metadata of GGUF against those of the inputs.

    ``is_ours``: the result was written here, where an adapter's own ``config.json`` takes the place
    of the model's; of another program's, either is right. ``rows`` are those of the embeddings.
    """
    in_gguf = ModelFolder(folder).is_gguf
    path = find_gguf_files(ModelFolder(folder))[0] if in_gguf else ModelFolder(folder).config_path
    given = list(_list_sources(inputs))
    allowed = [(source, _normalize(config)) for source, config in (given[:1] if is_ours else given)]
    found = _normalize(result.config)
    compared = Findings()
    if in_gguf:
        compared.unchecked.append(tr("{not_read} of {path}", not_read=_NOT_READ, path=path))
        compared.unchecked += [
            line for pair in allowed[:1] for line in _describe_beyond_gguf(*pair)
        ]
        allowed = [(source, _reduce_to_gguf(numbers)) for source, numbers in allowed]
        found = found if found["rope_scaling"] is None else _reduce_to_gguf(found)
    for key in dict.fromkeys(name for _, numbers in (*allowed, (path, found)) for name in numbers):
        if key == _CONTEXT and PARAMS_NAME in (path.name, allowed[0][0].name):
            compared.unchecked += _describe_context(path, allowed, found)
        else:
            _compare_key(compared, path, key, allowed, found)
    compared.faults += _check_vocabulary(path, result.config, given[-1], rows)
    return compared


def _list_sources(inputs: MergeInputs) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The last adapter's configuration where one has its own, then the model's."""
    for adapter in reversed(inputs.adapters):
        if (adapter.folder / CONFIG_NAME).is_file():
            yield adapter.folder / CONFIG_NAME, read_json(adapter.folder / CONFIG_NAME)
            break
    model = inputs.dense or inputs.base
    first = model.files[0]
    in_gguf = first.suffix == ".gguf"
    yield first if in_gguf else ModelFolder(first.parent).config_path, model.config


def _normalize(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the arithmetic, in one spelling and with what goes without
    saying.
    """
    if config.get("model_type") == mixtral.MODEL_TYPE:
        config = {"hidden_act": "silu", **mixtral.complete_config(config)}
    stated = {
        key: value
        for key, value in config.items()
        if value is not None and key not in _IGNORED_KEYS and not key.endswith(_IGNORED_ENDINGS)
    }
    nested = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or nested
    theta = config.get("rope_theta") or nested.get("rope_theta")
    if not theta and isinstance(scaling, Mapping):  # transformers 5 reads it there too
        theta = scaling.get("rope_theta")
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if config.get("model_type") == "llama":
        stated = _LLAMA_DEFAULTS | {"num_key_value_heads": heads} | stated
        theta = theta or DEFAULT_ROPE_THETA
    is_known = config.get("model_type") in ("llama", mixtral.MODEL_TYPE)
    if is_known and isinstance(hidden, int) and isinstance(heads, int) and heads:
        stated.setdefault("head_dim", hidden // heads)
    if theta:
        stated["rope_theta"] = theta
    return {**stated, "rope_scaling": _normalize_scaling(scaling)}


def _normalize_scaling(stated: Any) -> Any:
    """Scaling of the rotary positions under one name for its kind; None where there is none.

    >>> _normalize_scaling({"type": "linear", "factor": 2.0})
    {'rope_type': 'linear', 'factor': 2.0}
    """
    if not isinstance(stated, Mapping):
        return stated
    kind = stated.get("rope_type", stated.get("type", "default"))
    names = ("rope_type", "type", "rope_theta")
    others = {key: value for key, value in stated.items() if key not in names and value is not None}
    return None if kind == "default" and not others else {"rope_type": kind, **others}


def _reduce_to_gguf(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with as much of the rotary scaling as a GGUF file has keys for."""
    scaling = numbers["rope_scaling"] or {}
    kind = scaling.get("rope_type")
    kept = {"rope_type": kind, "factor": scaling.get("factor")}
    if kind == "yarn":
        kept[_LENGTH] = scaling.get(_LENGTH) or numbers.get(_CONTEXT)
    return {**numbers, "rope_scaling": kept if kind in _GGUF_SCALING else None}


def _describe_beyond_gguf(source: Path, numbers: Mapping[str, Any]) -> Iterator[str]:
    """A line for a rotary scaling of which ``_reduce_to_gguf`` leaves something out."""
    scaling = numbers["rope_scaling"] or {}
    known = {"rope_type", "factor", _LENGTH} if scaling.get("rope_type") in _GGUF_SCALING else ()
    if not set(scaling).issubset(known):
        yield tr(
            "{quote} of {source}, beyond its kind and factor",
            quote=_quote("rope_scaling", numbers),
            source=source,
        )


Numbers = Sequence[tuple[Path, Mapping[str, Any]]]


def _compare_key(
    compared: Findings, path: Path, key: str, allowed: Numbers, found: Mapping[str, Any]
) -> None:
    """Hold one key against each of the configurations that it may be from."""
    source, expected = allowed[0]
    if any(_has_same(numbers, found, key) for _, numbers in allowed):
        return
    if key in found and key in expected:
        compared.faults.append(
            VerificationError(
                tr("the configuration of the result is another than that of its model"),
                file=path,
                expected=tr("{quote}, as in {source}", quote=_quote(key, expected), source=source),
                found=_quote(key, found),
                remedy=_RESTORE,
            )
        )
        return
    has, lacks, numbers = (path, source, found) if key in found else (source, path, expected)
    compared.unchecked.append(
        tr(
            "{quote} of {has}, of which {lacks} says nothing",
            quote=_quote(key, numbers),
            has=has,
            lacks=lacks,
        )
    )


def _has_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str) -> bool:
    one, other = ours.get(key), theirs.get(key)
    alike = isinstance(one, bool) == isinstance(other, bool)  # True is 1 otherwise
    return (key in ours) == (key in theirs) and alike and _are_equal(one, other)


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two values are the same; fractions as far as float32 keeps them, as GGUF does."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-7)
    return bool(one == other)


def _describe_context(path: Path, allowed: Numbers, found: Mapping[str, Any]) -> Iterator[str]:
    """A length that was made up for Meta's layout is a note where the result says another one."""
    if path.name != PARAMS_NAME and found.get(_CONTEXT) != allowed[0][1].get(_CONTEXT):
        yield tr(
            "{quote} of {path}, of which {allowed} says nothing",
            quote=_quote(_CONTEXT, found),
            path=path,
            allowed=allowed[0][0],
        )


def _check_vocabulary(
    path: Path, config: Mapping[str, Any], model: tuple[Path, Mapping[str, Any]], rows: int
) -> Iterator[VerificationError]:
    """``vocab_size`` is the number of rows, and no head is tied that was none before."""
    stated = config.get("vocab_size")
    source, base = model
    for key, expected, is_wrong, why in (
        ("vocab_size", rows, stated not in (None, rows), tr("the rows of the embeddings")),
        (
            "tie_word_embeddings",
            False,
            config.get("tie_word_embeddings") and not base.get("tie_word_embeddings"),
            tr("as in {source}", source=source),
        ),
    ):
        if is_wrong:
            yield VerificationError(
                tr("the configuration of the result contradicts its model"),
                file=path,
                expected=compose("{quoted}, {why}", quoted=_quote(key, {key: expected}), why=why),
                found=_quote(key, config),
                remedy=_RESTORE,
            )


def _quote(key: str, config: Mapping[str, Any]) -> str:
    return f'"{key}": {json.dumps(config.get(key), ensure_ascii=False)}'
