"""Merge LoRA adapters into a base model: the main job.

What needs no torch is checked before torch is imported, so that most mistakes end a run at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checksums.check_files import require_published
from ..checksums.file_digests import start_digests
from ..deltas.adapter_config import WEIGHT_NAMES
from ..job_settings import MergeSettings
from ..options import takes_options
from ..output.fingerprint import JobInputs
from ..output.preflight import require_names_free
from ..plan.documents import ModelConfig, find_config, require_meta_model
from ..plan.gguf import require_gguf_model
from ..plan.inputs import Sources, find_sources, split_list
from ..plan.places import find_output
from ..plan.vocabulary import Vocabulary
from ..reports.merge_text import describe_changes, describe_inputs, describe_notes
from ..settings import OnProgress, make_settings
from ..storage.offload import Offload
from ..version import REPORT_NAMES
from .finished_tensors import finish_tensors
from .job_report import Report
from .open_base import open_base
from .shared_models import OpenedModels, Together
from .writing import lock_output, make_input_check, write

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..deltas.adapter import Adapter
    from ..deltas.apply import MergedModel
    from ..keywords import MergeOptions
    from ..output.journal import WrittenFile
    from ..plan.placement import Plan
    from ..reports.report_files import ReportMaker
    from ..tensors.lazy import Checkpoint
    from .verify_merge import Verification


@takes_options(MergeSettings)
def merge_lora(
    base_model: str | Path,
    lora_model: str | Path | Sequence[str | Path],
    output_dir: str | Path = "./",
    *,
    delta_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    same_inputs_as: str | Path | None = None,
    on_progress: OnProgress | None = None,
    on_verify: OnProgress | None = None,
    **options: Unpack[MergeOptions],
) -> MergeReport:
    """Merge one or more LoRA adapters, in their order, into a base model and write the full model.

    ``base_model``, ``lora_model`` and ``tokenizer`` are local folders or Hub ids; ``lora_model``
    may be a list, or text with commas. ``delta_model`` is a dense delta, such as Vicuna's, that is
    added to the base and rounded before the adapters. ``options`` are those of the command
    (docs/options.md), the fields of ``MergeSettings``.
    ``on_progress(written, total)`` is called as bytes are written. With ``dry_run`` everything is
    checked and planned from headers, and nothing is written. With ``verify_base`` the base's files
    are read first and held against the published checksums; ``on_verify`` is called meanwhile.

    With ``same_inputs_as``, a manifest, inputs of other content than it records are refused.

    Raises ``MergeError`` for every mistake in the input; the output folder is then as it was.
    """
    call = make_call(
        base_model, lora_model, output_dir, delta_model=delta_model, tokenizer=tokenizer, **options
    )
    return run_call(call, on_progress, on_verify, same_inputs_as)


def make_call(
    base_model: str | Path,
    lora_model: str | Path | Sequence[str | Path],
    output_dir: str | Path = "./",
    *,
    delta_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    **options: Unpack[MergeOptions],
) -> MergeCall:
    """Check the values that ``merge_lora`` takes, but for its callbacks, by themselves."""
    chosen = make_settings(MergeSettings, options, output_dir, merge_lora)
    loras = [lora_model] if isinstance(lora_model, (str, Path)) else lora_model
    return MergeCall(
        find_output(output_dir),
        chosen,
        str(base_model),
        tuple(str(name) for name in loras),
        str(tokenizer) if tokenizer else None,
        str(delta_model) if delta_model else None,
    )


def run_call(
    call: MergeCall,
    on_progress: OnProgress | None,
    on_verify: OnProgress | None,
    same_inputs_as: str | Path | None = None,
    together: Together | None = None,
) -> MergeReport:
    """Run what ``merge_lora`` was called with, by itself or ``together`` with others."""
    started = time.monotonic()
    output, chosen = call.output, call.settings
    with ExitStack() as held:
        offload = held.enter_context(Offload(chosen.offload_parent, output, chosen.io))
        sources = call.find_inputs(offload)
        target = held.enter_context(lock_output(output, sources.folders, chosen))
        known = (require_published(sources.base, on_verify),) if chosen.verify_base else ()
        if not chosen.dry_run:  # a dry run reads whole files only where they may be published ones
            start_digests(f.path / name for f in sources.adapters for name in WEIGHT_NAMES)
        models = together.models if together else None
        job = plan_merge(sources, chosen, offload, models)
        from ..plan.adapter_checks import require_consistent_copies

        require_consistent_copies(job.adapters)
        named = (*job.plan.documents, *(REPORT_NAMES if chosen.report else ()))
        require_names_free(target, named, chosen.overwrite or chosen.resume)
        wants_report = chosen.report and not chosen.dry_run
        maker = _prepare_report(job, started, offload) if wants_report else None
        check = make_input_check(job, same_inputs_as)
        check()
        member = together.member if together else None
        resumed = write(job, target, chosen, on_progress, check, call, maker, member)
        return MergeReport(
            output,
            job.plan,
            time.monotonic() - started,
            chosen.dry_run,
            offload.rename(*known, *describe_inputs(job), *offload.describe_network()),
            tuple(describe_changes(job)),
            offload.rename(*resumed, *describe_notes(job)),
            job,
            sources=sources.named,
        )


def _prepare_report(job: MergeJob, started: float, offload: Offload) -> ReportMaker:
    from ..reports.merge_source import describe_merge
    from ..reports.report_files import ReportMaker

    return ReportMaker(replace(describe_merge(job), copies=offload.copies), started)


def verify_result(
    keywords: Mapping[str, Any], on_progress: OnProgress | None = None
) -> Verification:
    """Check what ``merge_lora(**keywords)`` has written, with the inputs that it has read."""
    from .verify_merge import verify_merge

    loras = keywords["lora_model"]
    names = [loras] if isinstance(loras, (str, Path)) else loras
    as_asked = " ".join("1" for _ in split_list([str(name) for name in names]))
    return verify_merge(
        keywords["output_dir"],
        base_model=keywords["base_model"],
        lora_model=loras,
        lora_weights=keywords.get("lora_weights") or as_asked,
        delta_model=keywords.get("delta_model"),
        rounding=keywords.get("rounding", "once"),
        context_length=keywords.get("context_length"),
        num_workers=keywords.get("num_workers"),
        offload_dir=keywords.get("offload_dir"),
        on_progress=on_progress,
    )


@dataclass(frozen=True)
class MergeCall:
    """What a merge was called with: a ``Call``."""

    output: Path
    settings: MergeSettings
    base_model: str
    lora_models: tuple[str, ...]
    tokenizer: str | None
    delta_model: str | None

    def find_inputs(self, offload: Offload) -> Sources:
        """Find the folders; the Hub's are downloaded."""
        names = (self.base_model, list(self.lora_models), self.tokenizer)
        return find_sources(*names, offload, self.delta_model)

    def plan(self, found: Sources, offload: Offload) -> MergeJob:
        """Plan the merge of what was found."""
        return plan_merge(found, self.settings, offload)


@dataclass(frozen=True)
class MergeJob:
    """A merge that has been checked and planned from headers.

    ``base`` is what the adapters are merged into: the ``plain`` base, with the ``delta`` on it
    where there is one. ``notes`` are on the delta, and on the order of published adapters.
    """

    sources: Sources
    settings: MergeSettings
    config: ModelConfig
    vocabulary: Vocabulary
    base: Checkpoint
    adapters: tuple[Adapter, ...]
    model: MergedModel
    plan: Plan
    plain: Checkpoint
    delta: Checkpoint | None
    notes: tuple[str, ...] = ()

    def reads(self) -> JobInputs:
        """What it reads."""
        models = {"base_model": self.plain}
        if self.delta is not None:
            models["delta_model"] = self.delta
        digests = {path: digest for a in self.adapters for path, digest in a.digests.items()}
        return JobInputs(models, digests, self._describe_peft())

    def _describe_peft(self) -> dict[str, Any]:
        """The releases whose arithmetic the result is, where PEFT merged an adapter."""
        from ..peft_layers.installed import get_versions

        by_peft = any(adapter.config.method for adapter in self.adapters)
        return {"merged_by": get_versions()} if by_peft else {}

    def manifest(self, written: Mapping[str, WrittenFile]) -> dict[str, Any]:
        """What ``merge_manifest.json`` says of this merge."""
        from ..output.manifest import build_manifest, describe_checkpoint, describe_file
        from ..output.repeated import record_options

        inputs: dict[str, Any] = {
            "base_model": describe_checkpoint(self.sources.base_model, self.plain),
            "adapters": [
                {
                    "source": source,
                    "weight": a.config.weight,
                    "files": [describe_file(*pair) for pair in a.digests.items()],
                    **({"ignored": list(a.files.ignored)} if a.files.ignored else {}),
                }
                for source, a in zip(self.sources.lora_models, self.adapters, strict=True)
            ],
        }
        if self.delta is not None:
            source = self.sources.delta_model or ""
            inputs["delta_model"] = describe_checkpoint(source, self.delta)
        steps = {
            name: {"steps": [step.as_json() for step in steps]}
            for name, steps in self.model.steps.items()
        }
        recorded = (
            *("dtype", "rounding", "vocab_mismatch", "new_token_init"),
            "allow_unknown_combination",
        )
        how: dict[str, Any] = {name: getattr(self.settings, name) for name in recorded}
        how |= self._describe_peft()
        how["tokenizer_named"] = self.sources.tokenizer_named
        how |= record_options("merge", self.settings)
        if self.delta is not None:
            how["delta"] = {"embeddings": self.settings.delta_embeddings}
        return build_manifest(self.plan, written, inputs, self.sources.tokenizer, how, steps)


@dataclass(frozen=True)
class MergeReport(Report):
    """A report with the merge itself, for code that wants to look closer."""

    job: MergeJob


def plan_merge(
    sources: Sources,
    settings: MergeSettings,
    offload: Offload,
    models: OpenedModels | None = None,
) -> MergeJob:
    """Open everything, check it against each other, and plan the output.

    Base and dense delta are opened among ``models``, which may be those of other merges too.
    Raises ``MergeError`` for every mistake that headers show.
    """
    any_decoder = sources.delta is None
    if not (sources.model.is_meta or sources.model.is_gguf):
        described = find_config(sources, any_decoder=any_decoder)
        if settings.output_type == "gguf":
            require_gguf_model(described, sources.tokenizer)
        elif settings.output_type == "pth":
            require_meta_model(described, sources.tokenizer)

    from ..deltas.apply import apply_adapters
    from ..deltas.peft_patches import attach_peft_to_all
    from ..plan.adapter_checks import build_vocabulary, read_value_heads, require_compatible
    from ..plan.placement import Model, plan_output
    from ..tensors.lazy import parse_dtype

    plain, delta, base, base_notes = open_base(sources, settings, models or OpenedModels(offload))
    config = find_config(sources, base, any_decoder, settings.copy_code)
    adapters = _open_adapters(sources, settings, offload, base)
    base, before_new_rows, config = _adapt_base(base, adapters, config, settings)
    config = replace(config, code={**config.code, **read_value_heads(adapters)})
    order_notes = require_compatible(sources, base, adapters, settings)
    vocabulary = build_vocabulary(sources, before_new_rows, adapters, settings.vocab_mismatch)
    rows = vocabulary.require_rows(settings.new_token_init is not None)
    per_adapter = settings.rounding == "per_adapter"
    dtype = parse_dtype(settings.dtype)
    adapters = attach_peft_to_all(adapters, base)
    merged = apply_adapters(base, adapters, dtype, per_adapter, settings.vocab_mismatch)
    tensors, rows, measured = finish_tensors(
        merged, before_new_rows, rows, sources, settings, config
    )
    named = (sources.base_model, *filter(None, [sources.delta_model]), *sources.lora_models)
    model = Model(tensors, merged.tied, rows, config, sources.tokenizer, named)
    plan = replace(plan_output(model, settings), measured=measured)
    parts = (vocabulary, base, adapters, merged, plan, plain, delta)
    return MergeJob(sources, settings, config, *parts, (*base_notes, *order_notes))


def _open_adapters(
    sources: Sources, settings: MergeSettings, offload: Offload, base: Checkpoint
) -> tuple[Adapter, ...]:
    """Open the adapters, their tensors under the base's names and in its order of rows."""
    from ..deltas.adapter import open_adapter
    from ..deltas.gguf_adapter import fit_to_base
    from ..deltas.prefixes import rename_as_base

    weights = settings.weights(len(sources.adapters))
    opened = [
        rename_as_base(open_adapter(folder, offload, weight, settings.ignore_file), base.tensors)
        for folder, weight in zip(sources.adapters, weights, strict=True)
    ]
    return tuple(fit_to_base(one, base, settings.allow_quantized_input) for one in opened)


def _adapt_base(
    base: Checkpoint, adapters: Sequence[Adapter], config: ModelConfig, settings: MergeSettings
) -> tuple[Checkpoint, Checkpoint, ModelConfig]:
    """Give the base the rows that adapters append, and a classifier's head in place of the LM head.

    Returns the base that adapters are merged into, the one whose rows count as the base's own, and
    the configuration.
    """
    from ..deltas.appended import with_new_rows
    from ..deltas.classifiers import SCORE, as_classifier, build_classifier_config, is_classifier

    before_new_rows = base
    for adapter in adapters:
        base = with_new_rows(base, adapter, settings.new_token_init)
    if not is_classifier(base, adapters):
        return base, before_new_rows, config
    base = as_classifier(base, adapters)
    labels = base.tensors[SCORE].rows
    return base, base, replace(config, config=build_classifier_config(config.config, labels))
