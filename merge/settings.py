"""What shapes a result and how it is made, checked as soon as it is said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import UsageError
from .sizes import parse_size

OutputType = Literal["pth", "huggingface"]
Rounding = Literal["once", "per_adapter"]

NEW_TOKEN_INITS = ("subtokens", "mean", "zeros", "normal")
DTYPES = ("auto", "float16", "bfloat16", "float32")
DEFAULT_MEMORY = "64MB"
LARGEST_MEMORY = "256MB"


@dataclass(frozen=True)
class OutputSettings:
    """How a model is poured, and what that may cost.

    ``num_shards`` is for ``pth``, ``max_shard_size`` and ``safe_serialization`` for
    ``huggingface``. ``max_memory`` is the budget for buffers, in bytes or as text ("64MB").
    Raises ``UsageError`` for values that mean nothing.
    """

    output_type: OutputType = "pth"
    dtype: str = "float16"
    max_shard_size: str = "10GB"
    safe_serialization: bool = False
    num_shards: int | None = None
    max_memory: int | str = DEFAULT_MEMORY
    num_workers: int | None = None

    def __post_init__(self) -> None:
        require_one_of("output_type", self.output_type, ("pth", "huggingface"))
        require_one_of("dtype", self.dtype, DTYPES)
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

    ``context_length`` is that of a base in Meta's layout, whose files do not say it.
    """

    rounding: Rounding = "once"
    new_token_init: str | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("rounding", self.rounding, ("once", "per_adapter"))
        require_positive("context_length", self.context_length)
        if self.new_token_init is not None:
            require_one_of("new_token_init", self.new_token_init, NEW_TOKEN_INITS)


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``UsageError`` unless an option has one of its values."""
    if value not in choices:
        raise UsageError(f"--{name} has another value", expected=", ".join(choices), found=value)


def require_positive(name: str, value: int | None) -> None:
    """Raise ``UsageError`` for a number below 1."""
    if value is not None and value < 1:
        raise UsageError(f"--{name} must be at least 1", found=value)


def _size(name: str, value: int | str) -> int:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from None
