"""The jobs, each the same sentence: open a base, add deltas to it, pour the result into a layout.

What needs no torch is checked before torch is imported, so that most mistakes are told at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .documents import ModelConfig, find_config, huggingface_documents, meta_documents
from .errors import UsageError
from .json_text import json_bytes
from .outputs import MANIFEST_NAME, require_free
from .sizes import parse_size
from .sources import Sources, find_sources
from .staging import Offload, StagedFolder, require_space
from .vocabulary import AdapterRows, Vocabulary

if TYPE_CHECKING:
    import torch

    from tokenizer_tools.huggingface import TokenizerFolder

    from .deltas.apply import MergedModel
    from .deltas.peft import Adapter
    from .lazy import Checkpoint
    from .plan import Plan

OutputType = Literal["pth", "huggingface"]
Rounding = Literal["once", "per_adapter"]
OnProgress = Callable[[int, int], object]

DTYPES = ("auto", "float16", "bfloat16", "float32")
DEFAULT_MEMORY = "64MB"
LARGEST_MEMORY = "256MB"


@dataclass(frozen=True)
class Settings:
    """What shapes the result of a merge, and how it is run.

    ``num_shards`` is for ``pth``, ``max_shard_size`` and ``safe_serialization`` for
    ``huggingface``. ``max_memory`` is the budget for buffers, in bytes or as text ("64MB").
    """

    output_type: OutputType = "pth"
    dtype: str = "float16"
    max_shard_size: str = "10GB"
    safe_serialization: bool = False
    num_shards: int | None = None
    rounding: Rounding = "once"
    max_memory: int | str = DEFAULT_MEMORY
    num_workers: int | None = None

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for values that mean nothing."""
        _require_one_of("output_type", self.output_type, ("pth", "huggingface"))
        _require_one_of("dtype", self.dtype, DTYPES)
        _require_one_of("rounding", self.rounding, ("once", "per_adapter"))
        _require_positive("max_shard_size", _size("max_shard_size", self.max_shard_size))
        _require_positive("max_memory", self.memory)
        _require_positive("num_shards", self.num_shards)
        _require_positive("num_workers", self.num_workers)

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


def _require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"--{name} has another value", expected=", ".join(choices), found=value)


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"--{name} must be at least 1", found=value)


def _size(name: str, value: int | str) -> int:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from None


@dataclass(frozen=True)
class MergeReport:
    """What a merge did (or, with ``dry_run``, would do), where, and how long it took."""

    job: MergeJob
    output_dir: Path
    seconds: float
    dry_run: bool

    def summary(self) -> str:
        """Tell it in a few lines."""
        from .summary import summary

        return summary(self)


def merge_lora(
    base_model: str | Path,
    lora_model: str | Path | Sequence[str | Path],
    output_dir: str | Path = "./",
    *,
    tokenizer: str | Path | None = None,
    offload_dir: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> MergeReport:
    """Merge one or more LoRA adapters, in their order, into a base model and write the full model.

    ``base_model``, ``lora_model`` and ``tokenizer`` are local folders or Hub ids; ``lora_model``
    may be a list, or text with commas. ``settings`` are the fields of ``Settings``.
    ``on_progress(written, total)`` is called as bytes are written. With ``dry_run`` everything is
    checked and planned from headers, and nothing is written.

    Raises ``MergeError`` for every mistake in the input; the output folder is then as it was.
    """
    started = time.monotonic()
    chosen = Settings(**settings)
    output = Path(output_dir).expanduser()
    loras = [lora_model] if isinstance(lora_model, (str, Path)) else lora_model
    with Offload(Path(offload_dir).expanduser() if offload_dir else None, output) as offload:
        sources = find_sources(
            str(base_model),
            [str(name) for name in loras],
            str(tokenizer) if tokenizer else None,
            offload,
        )
        replaced = require_free(output, sources.folders, overwrite)
        job = _prepare(sources, chosen, offload)
        require_space(output, job.plan.disk_bytes)
        if not dry_run:
            _write(job, output, replaced, on_progress or (lambda written, total: None))
    return MergeReport(job, output, time.monotonic() - started, dry_run)


@dataclass(frozen=True)
class MergeJob:
    """A merge that has been checked and planned from headers."""

    sources: Sources
    settings: Settings
    config: ModelConfig
    vocabulary: Vocabulary
    base: Checkpoint
    adapters: tuple[Adapter, ...]
    model: MergedModel
    plan: Plan


def _prepare(sources: Sources, settings: Settings, offload: Offload) -> MergeJob:
    """Open everything, check it against each other, and plan the output."""
    config = find_config(sources)

    from .deltas.apply import apply_adapters
    from .deltas.peft import open_adapter
    from .digests import digested
    from .layouts.huggingface import open_base

    base = digested(open_base(sources.base, offload))
    adapters = tuple(open_adapter(folder, offload) for folder in sources.adapters)
    vocabulary = _vocabulary(sources, base, adapters)
    rows = vocabulary.checked_rows()
    per_adapter = settings.rounding == "per_adapter"
    model = apply_adapters(base, adapters, _torch_dtype(settings.dtype), per_adapter)
    plan = _plan(sources.tokenizer, settings, config, model, rows)
    return MergeJob(sources, settings, config, vocabulary, base, adapters, model, plan)


def _torch_dtype(name: str) -> torch.dtype | None:
    import torch

    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    return dtypes.get(name)


def _vocabulary(sources: Sources, base: Checkpoint, adapters: Sequence[Adapter]) -> Vocabulary:
    from .layouts.llama import EMBED_TOKENS, LM_HEAD

    def rows(adapter: Adapter, name: str) -> int | None:
        return adapter.replaced[name].rows if name in adapter.replaced else None

    return Vocabulary(
        base.tensors[EMBED_TOKENS].rows,
        tuple(
            AdapterRows(
                adapter.name,
                rows(adapter, EMBED_TOKENS),
                rows(adapter, LM_HEAD),
                adapter.config.ensure_weight_tying,
            )
            for adapter in adapters
        ),
        sources.tokenizer.n_tokens,
        sources.tokenizer.path,
        sources.base_tokenizer.n_tokens if sources.base_tokenizer else None,
    )


def _plan(
    tokenizer: TokenizerFolder,
    settings: Settings,
    config: ModelConfig,
    model: MergedModel,
    rows: int,
) -> Plan:
    from .layouts import huggingface, meta
    from .layouts.llama import EMBED_TOKENS, LM_HEAD
    from .plan import Plan

    if settings.output_type == "pth":
        whole = {LM_HEAD: model.tensors[EMBED_TOKENS], **model.tensors}
        poured = meta.pour(whole, config.shape, settings.num_shards)
        return Plan(tuple(poured), meta_documents(config, tokenizer, rows))
    poured = huggingface.pour(model.tensors, settings.suffix, settings.max_shard_size)
    dtype = str(model.tensors[EMBED_TOKENS].dtype).removeprefix("torch.")
    documents = {
        **huggingface_documents(config, tokenizer, rows, dtype, model.tied),
        **huggingface.index_document(poured, settings.suffix),
    }
    return Plan(tuple(poured), documents)


def _write(job: MergeJob, output: Path, replaced: Sequence[Path], on_progress: OnProgress) -> None:
    """Write weights first and the manifest last: the folder is complete when that is there."""
    from . import engine
    from .integrity import manifest

    total, written = job.plan.tensor_bytes, 0

    def progress(count: int) -> None:
        nonlocal written
        written += count
        on_progress(written, total)

    with StagedFolder(output, obsolete=replaced) as staged:
        digests = engine.run(
            job.plan,
            staged,
            num_workers=job.settings.workers,
            max_memory=job.settings.memory,
            progress=progress,
        )
        for name, data in job.plan.documents.items():
            staged.write(name, data)
        staged.write(MANIFEST_NAME, json_bytes(manifest(job, digests)))
