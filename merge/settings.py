"""What shapes a result and how it is made, checked as soon as it is said."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import UsageError
from .sizes import parse_size

IoMode = Literal["auto", "direct", "buffered"]
OutputType = Literal["pth", "huggingface", "gguf"]
Rounding = Literal["once", "per_adapter"]

IO_MODES: tuple[IoMode, ...] = ("auto", "direct", "buffered")
ROUNDINGS: tuple[Rounding, ...] = ("once", "per_adapter")
OnProgress = Callable[[int, int], object]
"""Told bytes done so far and bytes in all; ``None`` where nobody asks."""
DELTA_EMBEDDINGS = ("auto", "whole", "difference")
DELTA_TOKEN_INITS = ("zeros", "mean")
NEW_TOKEN_INITS = ("subtokens", "mean", "zeros", "normal")
OUTPUT_TYPES: tuple[OutputType, ...] = ("pth", "huggingface", "gguf")
SHORT_NAMES: dict[str, OutputType] = {"hf": "huggingface"}
DTYPES = ("auto", "float16", "bfloat16", "float32")
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
CHAT_TEMPLATES = ("alpaca",)
# What a sum is rounded to when only the type in a GGUF file is said.
_DTYPE_FOR = {"f32": "float32", "bf16": "bfloat16", "q8_0": "float32"}
VOCAB_MISMATCHES = ("error", "keep_base_rows", "truncate")
# What an option is about; beside another type of output it would be ignored.
_ONLY_FOR: dict[str, OutputType] = {
    "num_shards": "pth",
    "max_shard_size": "huggingface",
    "safe_serialization": "huggingface",
    "outtype": "gguf",
    "split_max_size": "gguf",
}
# Of a file, in bytes, on every system.
_LONGEST_NAME = 255
DEFAULT_MEMORY = "64MB"
LARGEST_MEMORY = "256MB"
_LEAST_MEMORY = 1_000_000
# What a worker needs: a block in float32 and the like, and the buffers of a span.
WORKER_BYTES = 12 << 20


@dataclass(frozen=True)
class OutputSettings:
    """How a model is written, and what that may cost.

    ``num_shards`` is for ``pth``, ``max_shard_size`` and ``safe_serialization`` for
    ``huggingface``, ``outtype`` and ``split_max_size`` for ``gguf``, in llama.cpp's words.
    ``dtype`` is what the model is rounded to; left empty, it is float16, or what ``outtype`` needs.
    ``chat_template`` names one that is to be the model's, ``model_name`` is what GGUF calls it.
    ``max_memory`` is the budget for buffers, in bytes or as text ("64MB"). ``io``
    says whether the page cache is used; see ``direct_io.py``. ``resume`` goes on with a run that
    was interrupted, from what it has left in the output folder. ``allow_nonfinite`` writes values
    that are infinite or no numbers as they are.
    Raises ``UsageError`` for values that mean nothing.
    """

    output_type: OutputType = "pth"
    dtype: str = ""
    max_shard_size: int | str = "10GB"
    safe_serialization: bool = False
    num_shards: int | None = None
    outtype: str = "auto"
    split_max_size: int | str | None = None
    chat_template: str | None = None
    model_name: str = "model"
    max_memory: int | str = DEFAULT_MEMORY
    num_workers: int | None = None
    io: IoMode = "auto"
    resume: bool = False
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        if self.output_type in SHORT_NAMES:
            object.__setattr__(self, "output_type", SHORT_NAMES[self.output_type])
        require_one_of("output_type", self.output_type, OUTPUT_TYPES)
        for name in ("safe_serialization", "resume", "allow_nonfinite"):
            require_bool(name, getattr(self, name))
        require_one_of("outtype", self.outtype, OUTTYPES)
        if not self.dtype:
            object.__setattr__(self, "dtype", _DTYPE_FOR.get(self.outtype, "float16"))
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("io", self.io, IO_MODES)
        require_positive("max_shard_size", _size("max_shard_size", self.max_shard_size))
        self._require_fitting_options()
        if self.memory < _LEAST_MEMORY:
            raise UsageError(
                "--max_memory is too small for any buffer", expected="1MB", found=self.max_memory
            )
        require_positive("num_shards", self.num_shards)
        require_positive("num_workers", self.num_workers)

    def _require_fitting_options(self) -> None:
        """Options of another output type, and a package that is not there, are told at once."""
        if self.chat_template is not None:
            require_one_of("chat_template", self.chat_template, CHAT_TEMPLATES)
            if self.output_type == "pth":
                raise UsageError(
                    "--chat_template has no place in Meta's layout",
                    remedy="use --output_type gguf or huggingface",
                )
        for option, output_type in _ONLY_FOR.items():
            given = getattr(self, option) != type(self).__dataclass_fields__[option].default
            if given and output_type != self.output_type:
                raise UsageError(
                    f"--{option} means nothing for this type of output",
                    expected=f"--output_type {output_type}",
                    found=f"--output_type {self.output_type}",
                    remedy=f"leave --{option} out, or change the type",
                )
        if self.split_max_size is not None:
            require_positive("split_max_size", _size("split_max_size", self.split_max_size))
        if self.output_type == "gguf":
            _require_name(self.model_name)
            require_gguf()

    @property
    def shard_bytes(self) -> int:
        """Largest Hugging Face shard, in bytes."""
        return _size("max_shard_size", self.max_shard_size)

    @property
    def split_bytes(self) -> int:
        """Largest GGUF file, in bytes; 0 for one file however large."""
        return _size("split_max_size", self.split_max_size) if self.split_max_size else 0

    @property
    def memory(self) -> int:
        """Budget for buffers, in bytes."""
        return min(_size("max_memory", self.max_memory), parse_size(LARGEST_MEMORY))

    @property
    def workers(self) -> int:
        """Threads that compute, as many as the budget of memory has room for.

        More than two rarely help: the disk is the limit.
        """
        wanted = self.num_workers or min(2, os.cpu_count() or 1)
        return min(wanted, max(1, self.memory // WORKER_BYTES))

    @property
    def suffix(self) -> str:
        """Ending of the weight files."""
        if self.output_type != "huggingface":
            return f".{self.output_type}"
        return ".safetensors" if self.safe_serialization else ".bin"


@dataclass(frozen=True)
class MergeSettings(OutputSettings):
    """What adapters add: where sums are rounded (see ``tensors/patched.py``), and how rows begin
    that the tokenizer asks for and no adapter has (see ``deltas/new_rows.py``; None refuses).

    ``lora_weights`` multiply what each adapter adds, one for each ("1.0,0.5"; None: 1 for all).
    ``vocab_mismatch`` says what becomes of vocabulary rows that an adapter lacks: ``error``,
    ``keep_base_rows`` or ``truncate``. ``allow_unknown_combination`` merges published adapters in
    orders that nobody published. ``copy_code`` takes Python files of adapters along, which nothing
    here runs. ``ignore_file`` names weight files of adapters' folders that are no part of the
    adapter. ``delta_embeddings`` says how a delta stores the vocabulary: ``whole``, as a
    ``difference``, or what its values tell (``auto``). ``context_length`` is that of a base in
    Meta's layout, whose files do not say it.
    """

    rounding: Rounding = "once"
    lora_weights: str | Sequence[float] | None = None
    vocab_mismatch: str = "error"
    allow_unknown_combination: bool = False
    new_token_init: str | None = None
    context_length: int | None = None
    copy_code: bool = False
    ignore_file: Sequence[str] = ()
    delta_embeddings: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("rounding", self.rounding, ROUNDINGS)
        require_one_of("vocab_mismatch", self.vocab_mismatch, VOCAB_MISMATCHES)
        for name in ("allow_unknown_combination", "copy_code"):
            require_bool(name, getattr(self, name))
        require_positive("context_length", self.context_length)
        require_one_of("delta_embeddings", self.delta_embeddings, DELTA_EMBEDDINGS)
        if isinstance(self.ignore_file, str):
            object.__setattr__(self, "ignore_file", (self.ignore_file,))
        if self.new_token_init is not None:
            require_one_of("new_token_init", self.new_token_init, NEW_TOKEN_INITS)
        self.weights(len(_numbers(self.lora_weights)))

    def weights(self, count: int) -> tuple[float, ...]:
        """The weight of each of ``count`` adapters. Raises ``UsageError`` for another number."""
        if self.lora_weights is None:
            return (1.0,) * count
        weights = _numbers(self.lora_weights)
        if len(weights) != count:
            raise UsageError(
                "--lora_weights must have one number for each adapter",
                expected=f"{count} numbers, such as " + ",".join(["1.0"] * max(1, count)),
                found=self.lora_weights,
            )
        return weights


Settings = TypeVar("Settings", bound=OutputSettings)


def require_gguf() -> None:
    """Raise ``UsageError`` unless llama.cpp's ``gguf`` package is installed."""
    found = find_spec("gguf")
    if found is None or found.origin is None:  # a folder of that name is none
        raise UsageError(
            "writing GGUF needs llama.cpp's package gguf, which is not installed",
            remedy="pip install 'chinese-llama-merge[gguf]'",
        )


def model_name(output_dir: str | Path) -> str:
    """What a model is called that goes to this folder: the folder's own name."""
    name = Path(output_dir).expanduser().resolve().name or "model"
    return name.encode("utf-8", "replace").decode()  # a folder's name may be no UTF-8


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``UsageError`` unless an option has one of its values."""
    if value not in choices:
        raise UsageError(
            f"--{name} is not one of its values", expected=", ".join(choices), found=repr(value)
        )


def require_bool(name: str, value: object) -> None:
    """Raise ``UsageError`` unless a switch is on or off; every text is true to Python."""
    if not isinstance(value, bool):
        raise UsageError(f"--{name} is a switch", expected="True or False", found=repr(value))


def require_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UsageError`` for a keyword that is none, naming the one that was perhaps meant."""
    known = list(known)
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, 1)
            raise UsageError(
                f"there is no option {name}",
                expected=", ".join(known),
                remedy=f"{close[0]} is perhaps meant" if close else "leave it out",
            )


def settings_named(kind: type[Settings], given: Mapping[str, Any], own: Iterable[str]) -> Settings:
    """Make settings of keywords. Raises ``UsageError`` for one that is neither theirs nor of the
    caller's ``own``.
    """
    require_known(given, [*own, *kind.__dataclass_fields__])
    return kind(**given)


def _require_name(name: str) -> None:
    """Raise ``UsageError`` for a model's name that can be neither a folder's nor text in a file."""
    last = Path(name).name
    strange = last == ".." or any(c == "\0" or "\ud800" <= c <= "\udfff" for c in last)
    if strange or len(last.encode()) > _LONGEST_NAME:
        raise UsageError(
            "the model cannot be called so",
            expected=f"a name that a folder can have, of at most {_LONGEST_NAME} bytes of UTF-8",
            found=repr(name),
            remedy="write into a folder of another name, or give model_name",
        )


def _numbers(weights: str | Sequence[float] | None) -> tuple[float, ...]:
    try:
        parts = weights.replace(",", " ").split() if isinstance(weights, str) else weights or ()
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(
            "--lora_weights holds something that is no finite number",
            expected="such as 1.0,0.5",
            found=weights,
        )
    return numbers


def require_positive(name: str, value: int | None) -> None:
    """Raise ``UsageError`` for what is no whole number, or below 1."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise UsageError(f"--{name} must be a whole number", found=repr(value))
    if value is not None and value < 1:
        raise UsageError(f"--{name} must be at least 1", found=value)


def _size(name: str, value: int | str) -> int:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise UsageError(
            f"--{name} is no size",
            expected="256MB, or a number of bytes",
            found=repr(value),
        )
    try:
        return parse_size(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from None
