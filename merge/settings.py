"""What shapes a result and how it is made, checked as soon as it is said."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import UsageError
from .sizes import parse_size

IoMode = Literal["auto", "direct", "buffered"]
OutputType = Literal["pth", "huggingface"]
Rounding = Literal["once", "per_adapter"]

IO_MODES: tuple[IoMode, ...] = ("auto", "direct", "buffered")
NEW_TOKEN_INITS = ("subtokens", "mean", "zeros", "normal")
DTYPES = ("auto", "float16", "bfloat16", "float32")
VOCAB_MISMATCHES = ("error", "keep_base_rows", "truncate")
DEFAULT_MEMORY = "64MB"
LARGEST_MEMORY = "256MB"


@dataclass(frozen=True)
class OutputSettings:
    """How a model is poured, and what that may cost.

    ``num_shards`` is for ``pth``, ``max_shard_size`` and ``safe_serialization`` for
    ``huggingface``. ``max_memory`` is the budget for buffers, in bytes or as text ("64MB"). ``io``
    says whether the page cache is used; see ``direct_io.py``.
    Raises ``UsageError`` for values that mean nothing.
    """

    output_type: OutputType = "pth"
    dtype: str = "float16"
    max_shard_size: str = "10GB"
    safe_serialization: bool = False
    num_shards: int | None = None
    max_memory: int | str = DEFAULT_MEMORY
    num_workers: int | None = None
    io: IoMode = "auto"

    def __post_init__(self) -> None:
        require_one_of("output_type", self.output_type, ("pth", "huggingface"))
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("io", self.io, IO_MODES)
        require_positive("max_shard_size", _size("max_shard_size", self.max_shard_size))
        require_positive("max_memory", self.memory)
        require_positive("num_shards", self.num_shards)
        require_positive("num_workers", self.num_workers)

    @property
    def memory(self) -> int:
        """Budget for buffers, in bytes."""
        return min(_size("max_memory", self.max_memory), parse_size(LARGEST_MEMORY))

    @property
    def workers(self) -> int:
        """Threads that compute. More than two rarely help: the disk is the limit."""
        return self.num_workers or min(2, os.cpu_count() or 1)

    @property
    def suffix(self) -> str:
        """Ending of the weight files."""
        if self.output_type == "pth":
            return ".pth"
        return ".safetensors" if self.safe_serialization else ".bin"


@dataclass(frozen=True)
class MergeSettings(OutputSettings):
    """What adapters add: where sums are rounded (see ``deltas/patches.py``), and how rows begin
    that the tokenizer asks for and no adapter has (see ``deltas/new_rows.py``; None refuses).

    ``lora_weights`` multiply what each adapter adds, one for each ("1.0,0.5"; None: 1 for all).
    ``vocab_mismatch`` says what becomes of vocabulary rows that an adapter lacks: ``error``,
    ``keep_base_rows`` or ``truncate``. ``allow_unknown_combination`` merges published adapters in
    orders that nobody published. ``context_length`` is that of a base in Meta's layout, whose
    files do not say it.
    """

    rounding: Rounding = "once"
    lora_weights: str | Sequence[float] | None = None
    vocab_mismatch: str = "error"
    allow_unknown_combination: bool = False
    new_token_init: str | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("rounding", self.rounding, ("once", "per_adapter"))
        require_one_of("vocab_mismatch", self.vocab_mismatch, VOCAB_MISMATCHES)
        require_positive("context_length", self.context_length)
        if self.new_token_init is not None:
            require_one_of("new_token_init", self.new_token_init, NEW_TOKEN_INITS)
        self.weights(len(_numbers(self.lora_weights)))

    def weights(self, count: int) -> tuple[float, ...]:
        """The weight of each of ``count`` adapters. Raises ``UsageError`` for another number."""
        if self.lora_weights is None:
            return (1.0,) * count
        weights = _numbers(self.lora_weights)
        if len(weights) != count or not all(map(math.isfinite, weights)):
            raise UsageError(
                "--lora_weights must have one number for each adapter",
                expected=f"{count} numbers, such as " + ",".join(["1.0"] * max(1, count)),
                found=self.lora_weights,
            )
        return weights


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``UsageError`` unless an option has one of its values."""
    if value not in choices:
        raise UsageError(f"--{name} has another value", expected=", ".join(choices), found=value)


def _numbers(weights: str | Sequence[float] | None) -> tuple[float, ...]:
    parts = weights.replace(",", " ").split() if isinstance(weights, str) else weights or ()
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(
            "--lora_weights holds something that is no number", expected="1.0,0.5", found=weights
        ) from None


def require_positive(name: str, value: int | None) -> None:
    """Raise ``UsageError`` for a number below 1."""
    if value is not None and value < 1:
        raise UsageError(f"--{name} must be at least 1", found=value)


def _size(name: str, value: int | str) -> int:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from None
