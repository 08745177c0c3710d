"""Add a dense delta to the base that it was made from, and the inverse: make such a delta."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, VerificationError
from ..layouts.config import (
    CONFIG_NAME,
    EXTENDED_MODEL_TYPES,
    LlamaShape,
    rotary_frequencies,
)
from ..layouts.model_folder import ModelFolder
from ..plan.documents import ModelConfig, find_model_config
from ..plan.inputs import chosen_tokenizer, resolve
from ..settings import (
    DELTA_EMBEDDINGS,
    DELTA_TOKEN_INITS,
    OnProgress,
    OutputSettings,
    model_name,
    require_one_of,
    require_positive,
    settings_named,
)
from ..storage.offload import Offload
from ..tokenizers.huggingface import TokenizerFolder
from .planned import Input, PlannedJob, carry_out, require_enough_rows
from .writing import Report, claimed

if TYPE_CHECKING:
    from ..deltas.dense import DenseResult
    from ..plan.placement import Plan
    from ..tensors.lazy import Checkpoint


def apply_delta(
    base_model: str | Path, delta_model: str | Path, output_dir: str | Path, **options: Any
) -> Report:
    """Write ``base_model + delta_model``, with configuration and tokenizer of the delta.

    All are local folders, the inputs may be Hub ids; the base may be in Meta's layout. ``options``
    are the fields of ``DeltaOptions`` and ``OutputSettings``. A delta with more rows than the base
    is added to a base grown by rows of zeros, or of its rows' mean. Raises ``MergeError`` for every
    mistake in the input; the output folder is then as it was.
    """
    return _run("delta_model", base_model, delta_model, output_dir, options)


def make_delta(
    base_model: str | Path, target_model: str | Path, output_dir: str | Path, **options: Any
) -> Report:
    """Write ``target_model - base_model``, with configuration and tokenizer of the target.

    ``apply_delta`` gives the target back, but for elements whose difference has more digits than
    ``dtype``: these are counted, and told in the report with the largest error.
    """
    return _run("target_model", base_model, target_model, output_dir, options)


@dataclass(frozen=True)
class DeltaOptions:
    """What a job on deltas is told beside how to write.

    ``keep_extra_tensors`` copies those that a LLaMA does not have from the delta (or target), which
    is refused without. ``delta_embeddings`` says whether the delta holds the vocabulary ``whole``
    or as a ``difference``; by default ``apply_delta`` asks the values (``auto``) and ``make_delta``
    makes differences. ``new_token_init`` is what is subtracted from rows that the base lacks:
    ``zeros`` (the default, as Vicuna) or the ``mean`` of the base's rows, as stanford_alpaca's
    weight_diff.py. ``expect_sum`` is the sum of all elements that ``apply_delta`` must come to.
    """

    tokenizer: str | Path | None = None
    context_length: int | None = None
    keep_extra_tensors: bool = False
    delta_embeddings: str | None = None
    new_token_init: str | None = None
    expect_sum: float | None = None
    offload_dir: str | Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    on_progress: OnProgress | None = None

    def __post_init__(self) -> None:
        require_positive("context_length", self.context_length)
        if self.delta_embeddings is not None:
            require_one_of("delta_embeddings", self.delta_embeddings, DELTA_EMBEDDINGS)
        if self.new_token_init is not None:
            require_one_of("new_token_init", self.new_token_init, DELTA_TOKEN_INITS)
        if self.expect_sum is not None and not isfinite(self.expect_sum):
            raise UsageError(
                "--expect_sum is no finite number",
                expected="the sum that was published, such as 50637.1836",
                found=self.expect_sum,
            )


# stanford_alpaca's own check allows as much for its 6.7 billion elements.
_SUM_TOLERANCE = 0.01
_NOT_GGUF = "use --output_type huggingface; apply_delta can write the result as GGUF"


def _run(
    role: str,
    base_model: str | Path,
    other_model: str | Path,
    output_dir: str | Path,
    options: dict[str, Any],
) -> Report:
    """Both directions; ``role`` says what the other model is: a delta or a target."""
    started = time.monotonic()
    own = {key: options.pop(key) for key in vars(DeltaOptions()) if key in options}
    chosen = DeltaOptions(**own)
    defaults = {"output_type": "huggingface", "model_name": model_name(output_dir)}
    settings = settings_named(OutputSettings, defaults | options, vars(chosen))
    if role == "target_model" and settings.output_type == "gguf":
        raise UsageError("a delta is no model that llama.cpp could run", remedy=_NOT_GGUF)
    _require_fitting(role, chosen, settings)
    output = Path(output_dir).expanduser()
    parent = Path(chosen.offload_dir).expanduser() if chosen.offload_dir else None
    with Offload(parent, output, settings.io) as offload:
        base = ModelFolder(resolve(str(base_model), "base model", offload))
        other = ModelFolder(resolve(str(other_model), role.replace("_", " "), offload))
        _require_two(base.path, other.path, role)
        for folder in (base, other):
            folder.require_config()
        tokenizer = chosen_tokenizer(chosen.tokenizer, [other, base], offload)
        names = {"base_model": (str(base_model), base), role: (str(other_model), other)}
        inputs, dry_run = (base.path, other.path, tokenizer.path), chosen.dry_run
        with claimed(output, inputs, settings, chosen.overwrite, dry_run) as target:
            job = _prepare(names, role, tokenizer, settings, chosen, offload)
            run = {"overwrite": chosen.overwrite, "dry_run": dry_run}
            return carry_out(job, target, settings, started, chosen.on_progress, **run)


def _require_fitting(role: str, options: DeltaOptions, settings: OutputSettings) -> None:
    """Raise ``UsageError`` for options that mean nothing in this direction, or in a resumed run."""
    if role == "target_model" and options.delta_embeddings == "auto":
        raise UsageError(
            "--delta_embeddings auto is for applying a delta, whose values can be asked",
            remedy="use whole or difference",
        )
    if options.expect_sum is None:
        return
    if role == "target_model":
        raise UsageError(
            "--expect_sum is the sum of a model, and a delta is made here",
            remedy="leave it out; apply_delta takes it",
        )
    if settings.resume:
        raise UsageError(
            "--expect_sum adds up every element while it is written, and a resumed run does not "
            "see what was written before",
            remedy="leave --resume out",
        )


def _require_two(base: Path, other: Path, role: str) -> None:
    if base.samefile(other):
        raise UsageError(
            f"base and {role.removesuffix('_model')} are the same folder",
            file=base,
            remedy="give the plain base, and the model that was trained from it or its delta",
        )


def _prepare(
    names: dict[str, tuple[str, ModelFolder]],
    role: str,
    tokenizer: TokenizerFolder,
    settings: OutputSettings,
    options: DeltaOptions,
    offload: Offload,
) -> PlannedJob:
    from ..deltas.dense import open_model
    from ..layouts.opening import open_checkpoint
    from ..tensors.digests import digested_checkpoint

    (base_name, base_folder), (other_name, other_folder) = names["base_model"], names[role]
    for_base = options.context_length if base_folder.is_meta else None
    base = digested_checkpoint(open_checkpoint(base_folder, offload, for_base))
    other = digested_checkpoint(
        open_model(
            other_folder,
            offload,
            options.keep_extra_tensors,
            options.context_length if for_base is None else None,
        )
    )
    result = _combined(names, role, base, other, settings, options)
    models = {
        "base_model": Input(base_name, base_folder.path, base),
        role: Input(other_name, other_folder.path, other),
    }
    config = find_model_config(other_folder, other, base_folder)
    rows = models[role].rows
    notes = (*config.notes, *require_enough_rows(rows, tokenizer), *_notes(settings, base, other))
    named = tuple(name for name, _ in names.values())
    plan = _plan(result, rows, config, tokenizer, named, settings)
    changes = _changes(role, result, options)
    return PlannedJob(
        plan,
        models,
        tokenizer,
        _recorded(role, settings, options),
        changes,
        notes,
        lambda resumed: _losses(role, result, resumed),
        lambda: _require_sum(options.expect_sum, result, other),
    )


def _combined(
    names: dict[str, tuple[str, ModelFolder]],
    role: str,
    base: Checkpoint,
    other: Checkpoint,
    settings: OutputSettings,
    options: DeltaOptions,
) -> DenseResult:
    """The sum or the difference, after asking a few values whether that makes sense."""
    from ..deltas.dense import DeltaForm, add_delta, subtract_base
    from ..deltas.differences import require_difference, require_known_filling, require_model
    from ..tensors.lazy import dtype_named

    (_, base_folder), (other_name, other_folder) = names["base_model"], names[role]
    require_model(
        base,
        base_folder.path,
        "base model",
        "check that base and delta are not exchanged, and give the model that the delta was made "
        "from as base",
    )
    dtype, init = dtype_named(settings.dtype), options.new_token_init or "zeros"
    if role == "target_model":
        require_model(other, other_folder.path, "target", "give the trained model itself")
        form = DeltaForm(options.delta_embeddings or "difference", init)
        return subtract_base(base, other, dtype, form)
    require_difference(base, other, other_folder.path)
    form = DeltaForm(options.delta_embeddings or "auto", init)
    result = add_delta(base, other, dtype, form, options.expect_sum is not None)
    if options.new_token_init is None:
        called = (other_name, other_folder.path.name, str(other.config.get("_name_or_path", "")))
        remedy = "say --new_token_init mean, or zeros for a delta as Vicuna's"
        require_known_filling(result.grown, called, remedy)
    return result


def _recorded(role: str, settings: OutputSettings, options: DeltaOptions) -> dict[str, Any]:
    """What the manifest and the identity of a run say of the settings."""
    usual = "auto" if role == "delta_model" else "difference"
    form = {
        "embeddings": options.delta_embeddings or usual,
        "new_token_init": options.new_token_init or "zeros",
    }
    named = options.tokenizer is not None
    return {"dtype": settings.dtype, "delta": form, "tokenizer_named": named}


def _require_sum(expected: float | None, result: DenseResult, delta: Checkpoint) -> None:
    """Raise ``VerificationError`` unless the elements add up to ``expected``.

    The published sums are of state dicts in which old releases of transformers kept the rotary
    frequencies of each layer; a delta whose files have them may count them.
    """
    if expected is None:
        return
    total = result.total.value
    shape = LlamaShape.from_config(delta.config, Path(CONFIG_NAME), EXTENDED_MODEL_TYPES)
    with_buffers = total + sum(rotary_frequencies(shape.head_dim)) * len(delta.dropped)
    allowed = max(_SUM_TOLERANCE, abs(expected) * 1e-7)
    if min(abs(total - expected), abs(with_buffers - expected)) > allowed:
        raise VerificationError(
            "the elements of the result do not add up to what --expect_sum says",
            expected=f"{expected:.4f}, within {allowed:.2g}",
            found=f"{total:.4f}",
            remedy="check that base and delta are the ones that belong together, and "
            "--new_token_init if there are new tokens",
        )


def _plan(
    result: DenseResult,
    rows: int,
    config: ModelConfig,
    tokenizer: TokenizerFolder,
    sources: tuple[str, ...],
    settings: OutputSettings,
) -> Plan:
    from ..plan.placement import Model, plan_output

    if result.extra and settings.output_type != "huggingface":
        raise UsageError(
            f"--output_type {settings.output_type} has no place for tensors that a LLaMA does not "
            "have",
            found=", ".join(list(result.extra)[:8]),
            remedy="use --output_type huggingface",
        )
    tensors = {**result.tensors, **result.extra}
    return plan_output(Model(tensors, result.tied, rows, config, tokenizer, sources), settings)


def _changes(role: str, result: DenseResult, options: DeltaOptions) -> tuple[str, ...]:
    count = len(result.tensors) - len(result.whole)
    made = f"added to {count} tensors" if role == "delta_model" else f"subtracted from {count}"
    filling = "the mean of its rows" if options.new_token_init == "mean" else "zeros"
    grown = f", base grown by {result.grown} rows of {filling}" if result.grown else ""
    whole = tuple(f"{name} taken whole ({why})" for name, why in result.whole.items())
    summed = f"elements add up to {options.expect_sum}" if options.expect_sum is not None else ""
    extra = (f"copied as they are: {', '.join(result.extra)}",) if result.extra else ()
    return (made + grown, *whole, *extra, *filter(None, [summed]))


def _notes(settings: OutputSettings, base: Checkpoint, other: Checkpoint) -> tuple[str, ...]:
    dropped = len(base.dropped) + len(other.dropped)
    left = f"left out {dropped} rotary buffers, which every reader makes"
    assumed = other.notes if settings.output_type != "pth" else ()
    return (*assumed, *((left,) if dropped else ()))


def _losses(role: str, result: DenseResult, resumed: bool) -> tuple[str, ...]:
    """What a difference that was just written cannot bring back."""
    if role == "delta_model":
        return ()
    if resumed:
        return ("how much of the target comes back is counted only in a run that is not resumed",)
    losses = result.losses
    if not losses.elements:
        return ("adding this delta gives back every element of the target",)
    return (
        f"adding this delta gives back all but {losses.elements:,} elements of the target exactly, "
        f"these within {losses.largest:.2g} (--dtype float32 keeps more)",
    )
