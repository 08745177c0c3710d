"""The configuration of a result against that of the model which it was made of.

The weights of a model are right only together with the numbers beside them: ``rms_norm_eps``, say.
What a key means need not be known for that. Every one must be as it was, but for those that are
known to change no number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import VerificationError
from ..layouts.config import CONFIG_NAME, DEFAULT_ROPE_THETA
from ..layouts.gguf.reading import gguf_files
from ..layouts.model_folder import ModelFolder
from ..layouts.params import PARAMS_NAME
from ..tensors.lazy import Checkpoint
from ..untrusted.strict_json import read_json
from .recipes import Inputs

# Keys that say nothing of the arithmetic, or that are checked elsewhere (see ``check``).
_NO_NUMBERS = frozenset(
    (
        *("architectures", "auto_map", "_name_or_path", "transformers_version", "model_name"),
        *("dtype", "torch_dtype", "quantization_config", "use_cache", "initializer_range"),
        *("pretraining_tp", "gradient_checkpointing", "torchscript", "return_dict", "id2label"),
        *("output_attentions", "output_hidden_states", "task_specific_params", "label2id"),
        *("vocab_size", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
    )
)
_NO_NUMBER_ENDINGS = ("_token_id", "dropout", "_pdrop")
# What a LLaMA's configuration leaves out, by transformers' ``LlamaConfig``.
_LLAMA = {
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
_NOT_READ = "rotary factors, scores and types of tokens, chat template and other metadata"
_LENGTH = "original_max_position_embeddings"
_PUT_BACK = "put back the configuration that belongs to these weights, or merge again"


@dataclass
class Compared:
    """What is wrong with a configuration, and lines on what nothing can be said of."""

    faults: list[VerificationError] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check(folder: Path, result: Checkpoint, inputs: Inputs, is_ours: bool, rows: int) -> Compared:
    """Hold ``config.json``, ``params.json`` or the metadata of GGUF against those of the inputs.

    ``is_ours``: the result was written here, where an adapter's own ``config.json`` takes the place
    of the model's; of another program's, either is right. ``rows`` are those of the embeddings.
    """
    in_gguf = ModelFolder(folder).is_gguf
    path = gguf_files(ModelFolder(folder))[0] if in_gguf else ModelFolder(folder).config_path
    given = list(_given(inputs))
    allowed = [(source, _numbers(config)) for source, config in (given[:1] if is_ours else given)]
    found = _numbers(result.config)
    compared = Compared()
    if in_gguf:
        compared.unchecked.append(f"{_NOT_READ} of {path}")
        compared.unchecked += [line for pair in allowed[:1] for line in _beyond_gguf(*pair)]
        allowed = [(source, _as_in_gguf(numbers)) for source, numbers in allowed]
        found = found if found["rope_scaling"] is None else _as_in_gguf(found)
    for key in dict.fromkeys(name for _, numbers in (*allowed, (path, found)) for name in numbers):
        if key == _CONTEXT and PARAMS_NAME in (path.name, allowed[0][0].name):
            compared.unchecked += _context(path, allowed, found)
        else:
            _compare(compared, path, key, allowed, found)
    compared.faults += _vocabulary(path, result.config, given[-1], rows)
    return compared


def _given(inputs: Inputs) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The last adapter's configuration where one has its own, then the model's."""
    for adapter in reversed(inputs.adapters):
        if (adapter.folder / CONFIG_NAME).is_file():
            yield adapter.folder / CONFIG_NAME, read_json(adapter.folder / CONFIG_NAME)
            break
    model = inputs.dense or inputs.base
    yield ModelFolder(model.files[0].parent).config_path, model.config


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the arithmetic, in one spelling and with what goes without
    saying.
    """
    said = {
        key: value
        for key, value in config.items()
        if value is not None and key not in _NO_NUMBERS and not key.endswith(_NO_NUMBER_ENDINGS)
    }
    nested = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or nested
    theta = config.get("rope_theta") or nested.get("rope_theta")
    if not theta and isinstance(scaling, Mapping):  # transformers 5 reads it there too
        theta = scaling.get("rope_theta")
    if config.get("model_type") == "llama":
        heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
        said = _LLAMA | {"num_key_value_heads": heads} | said
        if isinstance(hidden, int) and isinstance(heads, int) and heads:
            said.setdefault("head_dim", hidden // heads)
        theta = theta or DEFAULT_ROPE_THETA
    if theta:
        said["rope_theta"] = theta
    return {**said, "rope_scaling": _scaling(scaling)}


def _scaling(said: Any) -> Any:
    """Scaling of the rotary positions under one name for its kind; None where there is none.

    >>> _scaling({"type": "linear", "factor": 2.0})
    {'rope_type': 'linear', 'factor': 2.0}
    """
    if not isinstance(said, Mapping):
        return said
    kind = said.get("rope_type", said.get("type", "default"))
    names = ("rope_type", "type", "rope_theta")
    others = {key: value for key, value in said.items() if key not in names and value is not None}
    return None if kind == "default" and not others else {"rope_type": kind, **others}


def _as_in_gguf(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with as much of the rotary scaling as a GGUF file has keys for."""
    scaling = numbers["rope_scaling"] or {}
    kind = scaling.get("rope_type")
    kept = {"rope_type": kind, "factor": scaling.get("factor")}
    if kind == "yarn":
        kept[_LENGTH] = scaling.get(_LENGTH) or numbers.get(_CONTEXT)
    return {**numbers, "rope_scaling": kept if kind in _GGUF_SCALING else None}


def _beyond_gguf(source: Path, numbers: Mapping[str, Any]) -> Iterator[str]:
    """A line for a rotary scaling of which ``_as_in_gguf`` leaves something out."""
    scaling = numbers["rope_scaling"] or {}
    known = {"rope_type", "factor", _LENGTH} if scaling.get("rope_type") in _GGUF_SCALING else ()
    if not set(scaling).issubset(known):
        yield f"{_said('rope_scaling', numbers)} of {source}, beyond its kind and factor"


Numbers = Sequence[tuple[Path, Mapping[str, Any]]]


def _compare(
    compared: Compared, path: Path, key: str, allowed: Numbers, found: Mapping[str, Any]
) -> None:
    """Hold one key against each of the configurations that it may be from."""
    source, wanted = allowed[0]
    if any(_same(numbers, found, key) for _, numbers in allowed):
        return
    if key in found and key in wanted:
        compared.faults.append(
            VerificationError(
                "the configuration of the result is another than that of its model",
                file=path,
                expected=f"{_said(key, wanted)}, as in {source}",
                found=_said(key, found),
                remedy=_PUT_BACK,
            )
        )
        return
    has, lacks, numbers = (path, source, found) if key in found else (source, path, wanted)
    compared.unchecked.append(f"{_said(key, numbers)} of {has}, of which {lacks} says nothing")


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str) -> bool:
    one, other = ours.get(key), theirs.get(key)
    alike = isinstance(one, bool) == isinstance(other, bool)  # True is 1 otherwise
    return (key in ours) == (key in theirs) and alike and _equal(one, other)


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same; fractions as far as float32 keeps them, as GGUF does."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-7)
    return bool(one == other)


def _context(path: Path, allowed: Numbers, found: Mapping[str, Any]) -> Iterator[str]:
    """A length that was made up for Meta's layout is told where the result says another one."""
    if path.name != PARAMS_NAME and found.get(_CONTEXT) != allowed[0][1].get(_CONTEXT):
        yield f"{_said(_CONTEXT, found)} of {path}, of which {allowed[0][0]} says nothing"


def _vocabulary(
    path: Path, config: Mapping[str, Any], model: tuple[Path, Mapping[str, Any]], rows: int
) -> Iterator[VerificationError]:
    """``vocab_size`` is the number of rows, and no head is tied that was none before."""
    stated = config.get("vocab_size")
    source, base = model
    for key, wanted, is_wrong, why in (
        ("vocab_size", rows, stated not in (None, rows), "the rows of the embeddings"),
        (
            "tie_word_embeddings",
            False,
            config.get("tie_word_embeddings") and not base.get("tie_word_embeddings"),
            f"as in {source}",
        ),
    ):
        if is_wrong:
            yield VerificationError(
                "the configuration of the result contradicts its model",
                file=path,
                expected=f"{_said(key, {key: wanted})}, {why}",
                found=_said(key, config),
                remedy=_PUT_BACK,
            )


def _said(key: str, config: Mapping[str, Any]) -> str:
    return f'"{key}": {json.dumps(config.get(key), ensure_ascii=False)}'
