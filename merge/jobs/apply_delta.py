"""Add a dense delta to the base that it was made from, and the inverse: make such a delta."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, VerificationError
from ..job_settings import ApplyDeltaSettings, MakeDeltaSettings
from ..layouts.config import (
    CONFIG_NAME,
    EXTENDED_MODEL_TYPES,
    LlamaShape,
    compute_rotary_frequencies,
)
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..options import takes_options
from ..output.repeated import record_options
from ..plan.documents import ModelConfig, find_model_config
from ..plan.inputs import choose_tokenizer, find_tokenizer
from ..plan.places import find_output, resolve
from ..settings import OnProgress, OutputSettings, make_settings
from ..storage.offload import Offload
from ..storage.urls import hide_credentials
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from .job_report import Report
from .planned import Input, PlannedJob, require_enough_rows, write_and_report
from .writing import lock_output, make_input_check

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..deltas.dense import DenseResult
    from ..deltas.observed import Measurements
    from ..keywords import ApplyDeltaOptions, MakeDeltaOptions
    from ..plan.placement import Plan
    from ..reports.content import ReportSource
    from ..tensors.lazy import Checkpoint


@takes_options(ApplyDeltaSettings)
def apply_delta(
    base_model: str | Path,
    delta_model: str | Path,
    output_dir: str | Path,
    *,
    tokenizer: str | Path | None = None,
    same_inputs_as: str | Path | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[ApplyDeltaOptions],
) -> Report:
    """Write ``base_model + delta_model``, with configuration and tokenizer of the delta.

    All are local folders, the inputs may be Hub ids; the base may be in Meta's layout. ``options``
    are those of the command (docs/options.md), the fields of ``ApplyDeltaSettings``. A delta with
    more rows than the base is added to a base grown by rows of zeros, or of its rows' mean. With
    ``same_inputs_as``, a manifest, inputs of other content than it records are refused. Raises
    ``MergeError`` for every mistake in the input; the output folder is then as it was.
    """
    settings = make_settings(ApplyDeltaSettings, options, output_dir, apply_delta)
    models = base_model, delta_model, output_dir, tokenizer
    return _run(*models, settings, on_progress, same_inputs_as)


@takes_options(MakeDeltaSettings)
def make_delta(
    base_model: str | Path,
    target_model: str | Path,
    output_dir: str | Path,
    *,
    tokenizer: str | Path | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[MakeDeltaOptions],
) -> Report:
    """Write ``target_model - base_model``, with configuration and tokenizer of the target.

    ``options`` are those of the command, the fields of ``MakeDeltaSettings``. ``apply_delta`` gives
    the target back, but for elements whose difference has more digits than ``dtype``: these are
    counted in the report, with the largest error.
    """
    settings = make_settings(MakeDeltaSettings, options, output_dir, make_delta)
    return _run(base_model, target_model, output_dir, tokenizer, settings, on_progress)


# stanford_alpaca's own check allows as much for its 6.7 billion elements.
_SUM_TOLERANCE = 0.01
_Settings = ApplyDeltaSettings | MakeDeltaSettings


def _run(
    base_model: str | Path,
    other_model: str | Path,
    output_dir: str | Path,
    tokenizer: str | Path | None,
    settings: _Settings,
    on_progress: OnProgress | None,
    same_inputs_as: str | Path | None = None,
) -> Report:
    """Run either direction; the other model is a delta or a target."""
    started = time.monotonic()
    output = find_output(output_dir)
    named = None if tokenizer is None else str(tokenizer)
    call = DeltaCall(output, settings, str(base_model), str(other_model), named)
    with Offload(settings.offload_parent, output, settings.io) as offload:
        found = call.find_inputs(offload)
        with lock_output(output, found.folders, settings) as target:
            job = call.plan(found, offload)
            require_same = make_input_check(job, same_inputs_as)
            return write_and_report(
                job, target, settings, started, on_progress, offload, call, require_same
            )


@dataclass(frozen=True)
class DeltaInputs:
    """Both models by their roles in the manifest, as they were named and found."""

    models: dict[str, tuple[str, ModelFolder]]
    tokenizer: SentencePieceTokenizer

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of everything that is read."""
        return (*(folder.path for _, folder in self.models.values()), self.tokenizer.path)


@dataclass(frozen=True)
class DeltaCall:
    """What either direction was called with: a ``Call``."""

    output: Path
    settings: _Settings
    base_model: str
    other_model: str
    tokenizer: str | None

    def find_inputs(self, offload: Offload) -> DeltaInputs:
        """Find the folders; the Hub's are downloaded."""
        role = _other_role(self.settings)
        base = ModelFolder(resolve(self.base_model, tr("base model"), offload))
        other = ModelFolder(resolve(self.other_model, _ROLES[role], offload))
        _require_two(base.path, other.path, role)
        for folder in (base, other):
            folder.require_config()
        tokenizer = choose_tokenizer(self.tokenizer, [other, base], offload)
        models = {"base_model": (self.base_model, base), role: (self.other_model, other)}
        return DeltaInputs(models, tokenizer)

    def plan(self, found: DeltaInputs, offload: Offload) -> PlannedJob:
        """Plan the sum or the difference of what was found."""
        named = self.tokenizer is not None
        return _plan_job(found.models, found.tokenizer, named, self.settings, offload)


def _job_name(settings: _Settings) -> str:
    return "apply-delta" if isinstance(settings, ApplyDeltaSettings) else "make-delta"


_ROLES = {"delta_model": tr("delta"), "target_model": tr("target")}


def _other_role(settings: _Settings) -> str:
    """Return the manifest's name of the model beside the base."""
    return "delta_model" if isinstance(settings, ApplyDeltaSettings) else "target_model"


def _require_two(base: Path, other: Path, role: str) -> None:
    if base.samefile(other):
        raise UsageError(
            tr("base and {role} are the same folder", role=_ROLES[role]),
            file=base,
            remedy=tr("give the plain base, and the model that was trained from it or its delta"),
        )


def _plan_job(
    names: dict[str, tuple[str, ModelFolder]],
    tokenizer: SentencePieceTokenizer,
    tokenizer_named: bool,
    settings: _Settings,
    offload: Offload,
) -> PlannedJob:
    from ..deltas.dense import open_model
    from ..layouts.opening import open_checkpoint
    from ..tensors.digests import add_checkpoint_digests

    role = _other_role(settings)
    (base_name, base_folder), (other_name, other_folder) = names["base_model"], names[role]
    for_base = settings.context_length if base_folder.is_meta else None
    base = add_checkpoint_digests(open_checkpoint(base_folder, offload, for_base))
    other = add_checkpoint_digests(
        open_model(
            other_folder,
            offload,
            settings.keep_extra_tensors,
            settings.context_length if for_base is None else None,
        )
    )
    result = _combine(names, base, other, settings)
    measured = None
    if isinstance(settings, ApplyDeltaSettings) and settings.report:
        result, measured = _measure(result, base)
    models = {
        "base_model": Input(hide_credentials(base_name), base_folder.path, base),
        role: Input(hide_credentials(other_name), other_folder.path, other),
    }
    config = find_model_config(other_folder, other, base_folder)
    rows = models[role].rows
    notes = (
        *config.notes,
        *require_enough_rows(rows, tokenizer),
        *_describe_notes(settings, base, other),
    )
    named = tuple(name for name, _ in names.values())
    plan = _plan_output(result, rows, config, tokenizer, named, settings)
    plan = replace(plan, measured=measured)
    changes = _describe_changes(result, settings)
    return PlannedJob(
        plan,
        models,
        tokenizer,
        _record_settings(settings, tokenizer_named),
        changes,
        notes,
        record_options(_job_name(settings), settings),
        lambda resumed: _describe_losses(role, result, resumed),
        lambda: _require_sum(settings, result, other),
        None
        if measured is None
        else partial(_describe_report, models, tokenizer, result, measured, settings),
    )


def _measure(result: DenseResult, base: Checkpoint) -> tuple[DenseResult, Measurements]:
    """Let the tensors be measured as they are read."""
    from ..deltas.observed import Measurements, record_changes, record_rows

    recording, changes = record_changes(result.tensors)
    tensors, rows = record_rows(recording, base.tensors, result.whole)
    return replace(result, tensors=tensors), Measurements.of(tensors, changes, rows)


def _describe_report(
    models: dict[str, Input],
    tokenizer: SentencePieceTokenizer,
    result: DenseResult,
    measured: Measurements,
    settings: OutputSettings,
) -> ReportSource:
    from ..deltas.apply import Step
    from ..reports.content import ReportSource

    base = models["base_model"]
    steps = {
        name: (Step(1, "replaced" if name in result.whole else "added", base.rows, tensor.rows),)
        for name, tensor in measured.tensors.items()
    }
    inputs = {role: {"source": one.source, "rows": one.rows} for role, one in models.items()}
    before = find_tokenizer([ModelFolder(base.folder)])
    return ReportSource(
        "apply_delta", inputs, measured, steps, base.rows, before, tokenizer, settings
    )


def _combine(
    names: dict[str, tuple[str, ModelFolder]],
    base: Checkpoint,
    other: Checkpoint,
    settings: _Settings,
) -> DenseResult:
    """Add or subtract, after a check of a few values of both."""
    from ..deltas.dense import DeltaForm, add_delta, subtract_base
    from ..deltas.differences import require_difference, require_known_filling, require_model
    from ..tensors.lazy import parse_dtype

    (_, base_folder), (other_name, other_folder) = (
        names["base_model"],
        names[_other_role(settings)],
    )
    require_model(
        base,
        base_folder.path,
        tr("base model"),
        tr(
            "check that base and delta are not exchanged, and give the model "
            "that the delta was made from as base"
        ),
    )
    dtype, init = parse_dtype(settings.dtype), settings.new_token_init or "zeros"
    if isinstance(settings, MakeDeltaSettings):
        require_model(other, other_folder.path, tr("target"), tr("give the trained model itself"))
        form = DeltaForm(settings.delta_embeddings, init)
        return subtract_base(base, other, dtype, form)
    require_difference(base, other, other_folder.path)
    form = DeltaForm(settings.delta_embeddings, init)
    result = add_delta(base, other, dtype, form, settings.expect_sum is not None)
    if settings.new_token_init is None:
        called = (other_name, other_folder.path.name, str(other.config.get("_name_or_path", "")))
        remedy = tr("say --new_token_init mean, or zeros for a delta as Vicuna's")
        require_known_filling(result.grown, called, remedy)
    return result


def _record_settings(settings: _Settings, tokenizer_named: bool) -> dict[str, Any]:
    """The settings in the manifest and in a run's fingerprint."""
    init = settings.new_token_init or "zeros"
    form = {"embeddings": settings.delta_embeddings, "new_token_init": init}
    return {"dtype": settings.dtype, "delta": form, "tokenizer_named": tokenizer_named}


def _expected_sum(settings: _Settings) -> float | None:
    return settings.expect_sum if isinstance(settings, ApplyDeltaSettings) else None


def _require_sum(settings: _Settings, result: DenseResult, delta: Checkpoint) -> None:
    """Raise ``VerificationError`` unless the elements add up to ``expect_sum``.

    The published sums are of state dicts in which old releases of transformers kept the rotary
    frequencies of each layer; a delta whose files have them may count them.
    """
    expected = _expected_sum(settings)
    if expected is None:
        return
    total = result.total.value
    shape = LlamaShape.from_config(delta.config, Path(CONFIG_NAME), EXTENDED_MODEL_TYPES)
    with_buffers = total + sum(compute_rotary_frequencies(shape.head_dim)) * len(delta.dropped)
    allowed = max(_SUM_TOLERANCE, abs(expected) * 1e-7)
    if min(abs(total - expected), abs(with_buffers - expected)) > allowed:
        raise VerificationError(
            tr("the elements of the result do not add up to what --expect_sum says"),
            expected=tr("{expected:.4f}, within {allowed:.2g}", expected=expected, allowed=allowed),
            found=f"{total:.4f}",
            remedy=tr(
                "check that base and delta are the ones that belong together, and "
                "--new_token_init if there are new tokens"
            ),
        )


def _plan_output(
    result: DenseResult,
    rows: int,
    config: ModelConfig,
    tokenizer: SentencePieceTokenizer,
    sources: tuple[str, ...],
    settings: OutputSettings,
) -> Plan:
    from ..plan.placement import Model, plan_output

    if result.extra and settings.output_type != "huggingface":
        raise UsageError(
            tr(
                "--output_type {output_type} has no place for tensors that a LLaMA does not have",
                output_type=settings.output_type,
            ),
            found=", ".join(list(result.extra)[:8]),
            remedy=tr("use --output_type huggingface"),
        )
    tensors = {**result.tensors, **result.extra}
    return plan_output(Model(tensors, result.tied, rows, config, tokenizer, sources), settings)


def _describe_changes(result: DenseResult, settings: _Settings) -> tuple[str, ...]:
    count = len(result.tensors) - len(result.whole)
    applied = isinstance(settings, ApplyDeltaSettings)
    made = (
        tr("added to {count} tensors", count=count)
        if applied
        else tr("subtracted from {count}", count=count)
    )
    filling = tr("the mean of its rows") if settings.new_token_init == "mean" else tr("zeros")
    grown = (
        tr(", base grown by {grown} rows of {filling}", grown=result.grown, filling=filling)
        if result.grown
        else ""
    )
    whole = tuple(
        tr("{name} taken whole ({why})", name=name, why=why) for name, why in result.whole.items()
    )
    expected = _expected_sum(settings)
    summed = tr("elements add up to {expected}", expected=expected) if expected is not None else ""
    extra = (
        (tr("copied as they are: {extra}", extra=", ".join(result.extra)),) if result.extra else ()
    )
    return (made + grown, *whole, *extra, *filter(None, [summed]))


def _describe_notes(
    settings: OutputSettings, base: Checkpoint, other: Checkpoint
) -> tuple[str, ...]:
    dropped = len(base.dropped) + len(other.dropped)
    left = tr("left out {dropped} rotary buffers, which every reader computes", dropped=dropped)
    assumed = other.notes if settings.output_type != "pth" else ()
    return (*assumed, *((left,) if dropped else ()))


def _describe_losses(role: str, result: DenseResult, resumed: bool) -> tuple[str, ...]:
    """What a difference that was just written cannot bring back."""
    if role == "delta_model":
        return ()
    if resumed:
        return (
            tr("how much of the target comes back is counted only in a run that is not resumed"),
        )
    losses = result.losses
    if not losses.elements:
        return (tr("adding this delta gives back every element of the target"),)
    return (
        tr(
            "adding this delta gives back all but {elements:,} elements of the "
            "target exactly, these within {largest:.2g} (--dtype float32 keeps "
            "more)",
            elements=losses.elements,
            largest=losses.largest,
        ),
    )
