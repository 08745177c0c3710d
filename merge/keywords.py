"""The keywords of each job, for type checkers; the settings of the jobs define the options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from .job_settings import Rounding
from .settings import EngineName, IoMode, OutputType


class OutputOptions(TypedDict, total=False):
    """The keywords of ``OutputSettings``."""

    output_type: OutputType
    num_shards: int | None
    outtype: str
    imatrix: str | Path | None
    modelfile: str | None
    split_max_size: int | str | None
    chat_template: str | None
    dtype: str
    max_shard_size: int | str
    safe_serialization: bool
    overwrite: bool
    resume: bool
    allow_nonfinite: bool
    dry_run: bool
    max_memory: int | str | None
    num_workers: int | None
    io: IoMode
    offload_dir: str | Path | None
    model_name: str


class EngineOptions(OutputOptions, total=False):
    """The keywords of ``EngineSettings``."""

    engine: EngineName
    ray_address: str | None
    task_size: int | str


class MergeOptions(EngineOptions, total=False):
    """The keywords of ``MergeSettings``."""

    lora_weights: str | Sequence[float] | None
    allow_unknown_combination: bool
    copy_code: bool
    ignore_file: Sequence[str]
    delta_embeddings: str
    context_length: int | None
    allow_quantized_input: bool
    verify_base: bool
    vocab_mismatch: str
    new_token_init: str | None
    report: bool
    rounding: Rounding


class ConvertOptions(EngineOptions, total=False):
    """The keywords of ``ConvertSettings``."""

    context_length: int | None


class ResizeOptions(OutputOptions, total=False):
    """The keywords of ``ResizeSettings``."""

    init: str
    seed: int
    pad_to_multiple_of: int | None


class MakeDeltaOptions(OutputOptions, total=False):
    """The keywords of ``MakeDeltaSettings``."""

    keep_extra_tensors: bool
    delta_embeddings: str
    new_token_init: str | None
    context_length: int | None


class ApplyDeltaOptions(MakeDeltaOptions, EngineOptions, total=False):
    """The keywords of ``ApplyDeltaSettings``."""

    expect_sum: float | None
    report: bool
