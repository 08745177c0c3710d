"""The options of each job: a dataclass of fields for each, on top of ``OutputSettings``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .errors import UsageError
from .messages import tr
from .option_checks import (
    COUNT,
    parse_numbers,
    require_finite,
    require_integer,
    require_report_libraries,
    require_texts,
)
from .options import ARITHMETIC, INPUTS, OUTPUT, VOCABULARY, copy_option, option
from .settings import EngineSettings, OutputSettings, OutputType

Rounding = Literal["once", "per_adapter"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
DELTA_EMBEDDINGS = ("auto", "whole", "difference")
DELTA_TOKEN_INITS = ("zeros", "mean")
NEW_TOKEN_INITS = ("subtokens", "mean", "zeros", "normal")
VOCAB_MISMATCHES = ("error", "keep_base_rows", "truncate")


@dataclass(frozen=True)
class MergeSettings(EngineSettings):
    """How adapters are merged: where sums are rounded (see ``tensors/patched.py``), and how rows
    begin that the tokenizer asks for and no adapter has (see ``deltas/new_rows.py``).
    """

    lora_weights: str | Sequence[float] | None = option(
        None,
        INPUTS,
        tr("factors for what the adapters add, one for each, such as 1.0,0.5"),
        default_text=tr("1 for all"),
        check=parse_numbers,
        nargs="+",
        metavar="W",
    )
    allow_unknown_combination: bool = option(
        False, INPUTS, tr("merge published adapters in an order that nobody published")
    )
    copy_code: bool = option(
        False,
        INPUTS,
        tr("copy the Python files of adapters into a Hugging Face folder; they are never run"),
    )
    ignore_file: Sequence[str] = option(
        (),
        INPUTS,
        tr("a weight file in an adapter's folder that is not part of it; may be repeated"),
        default_text=tr("unknown weight files are refused"),
        check=require_texts,
        action="append",
        metavar="NAME",
    )
    delta_embeddings: str = option(
        "auto",
        INPUTS,
        tr(
            "whether the delta holds embeddings and LM head whole, as Ziya's "
            "does, or as differences; auto: decided from a few of its values"
        ),
        choices=DELTA_EMBEDDINGS,
    )
    context_length: int | None = option(
        None,
        INPUTS,
        tr("context length of a base in Meta's layout, whose files do not say it"),
        default_text=tr("that of the published model it looks like, named in the summary"),
        **COUNT,
    )
    allow_quantized_input: bool = option(
        False,
        INPUTS,
        tr(
            "merge into a GGUF base in q8_0, whose values are dequantized; what "
            "its quantization lost stays lost"
        ),
    )
    verify_base: bool = option(
        False,
        INPUTS,
        tr(
            "read the base's files first and compare them with SHA256.md; those "
            "of adapters and tokenizer always are"
        ),
        of_run=True,
    )
    vocab_mismatch: str = option(
        "error",
        VOCABULARY,
        tr(
            "when an adapter has fewer vocabulary rows than the model so far: "
            "refuse, keep the model's further rows, or drop them"
        ),
        choices=VOCAB_MISMATCHES,
    )
    new_token_init: str | None = option(
        None,
        VOCABULARY,
        tr("how rows are filled for tokens of the tokenizer that no adapter has rows for"),
        default_text=tr("refuse"),
        choices=NEW_TOKEN_INITS,
    )
    report: bool = option(
        False,
        OUTPUT,
        tr("write report.html and report.json too: what each adapter changed, and what to look at"),
        of_run=True,
    )
    rounding: Rounding = option(
        "once",
        ARITHMETIC,
        tr(
            "when sums are rounded; once: at the end, from float32; per_adapter: "
            "after each adapter, as tools that merge one at a time"
        ),
        choices=ROUNDINGS,
    )

    def __post_init__(self) -> None:
        if isinstance(self.ignore_file, str):
            object.__setattr__(self, "ignore_file", (self.ignore_file,))
        if self.ignore_file is None:
            object.__setattr__(self, "ignore_file", ())
        super().__post_init__()
        if self.report:
            require_report_libraries()

    def weights(self, count: int) -> tuple[float, ...]:
        """The weight of each of ``count`` adapters. Raises ``UsageError`` for another number."""
        if self.lora_weights is None:
            return (1.0,) * count
        weights = parse_numbers("lora_weights", self.lora_weights)
        if len(weights) != count:
            raise UsageError(
                tr("--lora_weights must have one number for each adapter"),
                expected=tr("{count} numbers, such as ", count=count)
                + ",".join(["1.0"] * max(1, count)),
                found=self.lora_weights,
            )
        return weights


@dataclass(frozen=True)
class MergeToHuggingFaceSettings(MergeSettings):
    """The same with another default, for the script of that name."""

    output_type: OutputType = copy_option(OutputSettings, "output_type", default="huggingface")


@dataclass(frozen=True)
class ConvertSettings(EngineSettings):
    """How a model is converted: tensors keep their dtype unless another is given."""

    output_type: OutputType = copy_option(OutputSettings, "output_type", default="huggingface")
    dtype: str = copy_option(OutputSettings, "dtype", default="auto")
    context_length: int | None = copy_option(MergeSettings, "context_length")


@dataclass(frozen=True)
class HuggingFaceSettings(ConvertSettings):
    """How a model is converted where only Hugging Face's layout is offered."""

    output_type: OutputType = "huggingface"
    num_shards: int | None = None
    outtype: str = "auto"
    imatrix: str | Path | None = None
    modelfile: str | None = None
    split_max_size: int | str | None = None


@dataclass(frozen=True)
class ResizeSettings(OutputSettings):
    """How a vocabulary is grown: tensors keep their dtype unless another is given."""

    output_type: OutputType = copy_option(OutputSettings, "output_type", default="huggingface")
    dtype: str = copy_option(OutputSettings, "dtype", default="auto")
    init: str = option(
        "subtokens",
        VOCABULARY,
        tr(
            "how new rows are filled; subtokens: mean of the rows of a token's "
            "old pieces; mean: of all old rows; normal: random, as transformers "
            "initializes"
        ),
        choices=NEW_TOKEN_INITS,
    )
    seed: int = option(
        0, VOCABULARY, tr("seed of --init normal"), check=require_integer, type=int, metavar="N"
    )
    pad_to_multiple_of: int | None = option(
        None,
        VOCABULARY,
        tr("add rows up to a multiple of N; each is the mean of all old rows"),
        default_text=tr("no padding"),
        **COUNT,
    )


@dataclass(frozen=True)
class _DeltaSettings(OutputSettings):
    output_type: OutputType = copy_option(OutputSettings, "output_type", default="huggingface")
    keep_extra_tensors: bool = option(
        False, INPUTS, tr("copy tensors that a LLaMA does not have, such as LLaVA's projector")
    )
    delta_embeddings: str = "auto"
    new_token_init: str | None = option(
        None,
        INPUTS,
        tr(
            "what is subtracted from rows that the base lacks: zeros, as "
            "Vicuna's deltas, or the mean of its rows, as stanford_alpaca's "
            "weight_diff.py"
        ),
        default_text=tr("zeros"),
        choices=DELTA_TOKEN_INITS,
    )
    context_length: int | None = copy_option(MergeSettings, "context_length")


@dataclass(frozen=True)
class ApplyDeltaSettings(_DeltaSettings, EngineSettings):
    """How a dense delta is added to its base."""

    delta_embeddings: str = copy_option(MergeSettings, "delta_embeddings")
    expect_sum: float | None = option(
        None,
        INPUTS,
        tr(
            "sum of all elements of the result, as published beside "
            "stanford_alpaca's deltas; a result with another sum is removed"
        ),
        default_text=tr("not checked"),
        check=require_finite,
        type=float,
        metavar="NUMBER",
    )
    report: bool = copy_option(MergeSettings, "report")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.report:
            require_report_libraries()
        if self.expect_sum is not None and self.resume:
            raise UsageError(
                tr(
                    "--expect_sum adds up every element while it is written, and a "
                    "resumed run does not see what was written before"
                ),
                remedy=tr("leave --resume out"),
            )
        if self.expect_sum is not None and self.engine != "local":
            raise UsageError(
                tr(
                    "--expect_sum adds up every element while it is written, which needs "
                    "one process"
                ),
                remedy=tr("leave --expect_sum out, or say --engine local"),
            )


@dataclass(frozen=True)
class MakeDeltaSettings(_DeltaSettings):
    """How a dense delta is made."""

    delta_embeddings: str = option(
        "difference",
        INPUTS,
        tr(
            "whether the delta holds embeddings and LM head whole, as Ziya's "
            "does, or as differences"
        ),
        choices=("difference", "whole"),
    )

    def __post_init__(self) -> None:
        if self.delta_embeddings == "auto":
            raise UsageError(
                tr("--delta_embeddings auto is for applying a delta, whose values can be asked"),
                remedy=tr("use whole or difference"),
            )
        super().__post_init__()
        if self.output_type == "gguf":
            raise UsageError(
                tr("a delta is no model that llama.cpp could run"),
                remedy=tr(
                    "use --output_type huggingface; apply_delta can write the result as GGUF"
                ),
            )
