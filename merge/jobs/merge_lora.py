"""Merge LoRA adapters into a base model: the main job.

What needs no torch is checked before torch is imported, so that most mistakes are told at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checksums.check_files import require_published
from ..checksums.file_digests import get_file_digest, start_digests
from ..checksums.known_tokenizers import recognize_bytes
from ..deltas.adapter_config import WEIGHT_NAMES
from ..errors import FormatError, UsageError
from ..layouts.model_folder import ModelFolder
from ..options import takes_options
from ..output.fingerprint import JobInputs
from ..output.preflight import require_names_free
from ..plan.documents import LLAMA_ONLY, ModelConfig, find_config, require_llama
from ..plan.inputs import Sources, find_sources
from ..plan.vocabulary import AdapterRows, Vocabulary, require_extension
from ..reports import merge_text as summary
from ..settings import MergeOptions, MergeSettings, OnProgress, make_settings
from ..storage.offload import Offload
from ..tokenizers.opaque_tokenizer import OpaqueTokenizer, require_sentencepiece
from ..untrusted.strict_json import read_small
from ..version import MANIFEST_NAME
from .writing import Report, lock_output, write

# A value head is a row or two.
_MOST_HEAD_BYTES = 16 << 20

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..deltas.adapter import Adapter
    from ..deltas.apply import MergedModel
    from ..output.journal import WrittenFile
    from ..plan.placement import Plan
    from ..tensors.lazy import Checkpoint, LazyTensor


@takes_options(MergeSettings)
def merge_lora(
    base_model: str | Path,
    lora_model: str | Path | Sequence[str | Path],
    output_dir: str | Path = "./",
    *,
    delta_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
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

    Raises ``MergeError`` for every mistake in the input; the output folder is then as it was.
    """
    started = time.monotonic()
    chosen = make_settings(MergeSettings, options, output_dir, merge_lora)
    output = Path(output_dir).expanduser()
    loras = [lora_model] if isinstance(lora_model, (str, Path)) else lora_model
    with ExitStack() as held:
        offload = held.enter_context(Offload(chosen.offload_parent, output, chosen.io))
        sources = find_sources(
            str(base_model),
            [str(name) for name in loras],
            str(tokenizer) if tokenizer else None,
            offload,
            str(delta_model) if delta_model else None,
        )
        target = held.enter_context(lock_output(output, sources.folders, chosen))
        known = (require_published(sources.base.path, on_verify),) if chosen.verify_base else ()
        if (
            not chosen.dry_run
        ):  # which reads headers, and the rest only of what may be a published file
            start_digests(f.path / name for f in sources.adapters for name in WEIGHT_NAMES)
        job = plan_merge(sources, chosen, offload)
        require_consistent_copies(job.adapters)
        require_names_free(target, job.plan.documents, chosen.overwrite or chosen.resume)
        resumed = write(job, target, chosen, on_progress)
        return MergeReport(
            output,
            job.plan,
            time.monotonic() - started,
            chosen.dry_run,
            (*known, *summary.inputs(job)),
            tuple(summary.changes(job)),
            (*resumed, *summary.notes(job)),
            job,
        )


@dataclass(frozen=True)
class MergeJob:
    """A merge that has been checked and planned from headers.

    ``base`` is what the adapters are merged into: the ``plain`` base, with the ``delta`` on it
    where there is one. ``notes`` are what cannot be told of the order of published adapters.
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
        configs = {a.config.path: a.folder.digest(a.config.path.name) for a in self.adapters}
        more = [path for a in self.adapters for path in a.files.further]
        digests = configs | {path: get_file_digest(path) for path in more}
        return JobInputs(models, digests | {a.weights: a.digest for a in self.adapters})

    def manifest(self, written: Mapping[str, WrittenFile]) -> dict[str, Any]:
        """What ``merge_manifest.json`` says of this merge."""
        from ..output.manifest import build_manifest, describe_checkpoint, describe_file

        inputs: dict[str, Any] = {
            "base_model": describe_checkpoint(self.sources.base_model, self.plain),
            "adapters": [
                {
                    "source": source,
                    "weight": a.config.weight,
                    "files": [
                        describe_file(a.config.path, a.folder.digest(a.config.path.name)),
                        describe_file(a.weights, a.digest),
                        *map(describe_file, a.files.further),
                    ],
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
        how["tokenizer_named"] = self.sources.tokenizer_named
        if self.delta is not None:
            how["delta"] = {"embeddings": self.settings.delta_embeddings}
        return build_manifest(self.plan, written, inputs, self.sources.tokenizer, how, steps)


@dataclass(frozen=True)
class MergeReport(Report):
    """A report with the merge itself, for code that wants to look closer."""

    job: MergeJob


def plan_merge(sources: Sources, settings: MergeSettings, offload: Offload) -> MergeJob:
    """Open everything, check it against each other, and plan the output."""
    any_decoder = sources.delta is None
    if not sources.model.is_meta:
        described = find_config(sources, any_decoder=any_decoder)
        if layout := LLAMA_ONLY.get(settings.output_type):
            require_llama(described, sources.tokenizer, layout)

    from ..deltas.adapter import open_adapter
    from ..deltas.appended import with_new_rows
    from ..deltas.apply import apply_adapters
    from ..deltas.classifiers import SCORE, as_classifier, build_classifier_config, is_classifier
    from ..deltas.dense import open_model
    from ..deltas.prefixes import rename_as_base
    from ..layouts.opening import open_checkpoint
    from ..plan.placement import Model, plan_output
    from ..tensors.digests import add_checkpoint_digests
    from ..tensors.lazy import parse_dtype

    context_length = settings.context_length
    plain = add_checkpoint_digests(
        open_checkpoint(sources.base, offload, context_length, any_decoder=any_decoder)
    )
    delta = add_checkpoint_digests(open_model(sources.delta, offload)) if sources.delta else None
    base, delta_notes = _with_delta(sources, settings, plain, delta)
    config = find_config(sources, base, any_decoder, settings.copy_code)
    before_new_rows = base
    weights = settings.weights(len(sources.adapters))
    adapters = tuple(
        rename_as_base(open_adapter(folder, offload, weight, settings.ignore_file), base.tensors)
        for folder, weight in zip(sources.adapters, weights, strict=True)
    )
    for adapter in adapters:
        base = with_new_rows(base, adapter, settings.new_token_init)
    if is_classifier(base, adapters):
        before_new_rows = base = as_classifier(base, adapters)
        labels = base.tensors[SCORE].rows
        config = replace(config, config=build_classifier_config(config.config, labels))
    config = replace(config, code={**config.code, **_read_value_heads(adapters)})
    _require_different(adapters)
    _require_ignored_files(adapters, settings.ignore_file)
    ordered = not settings.allow_unknown_combination
    notes = _require_known_order(sources, base, adapters) if ordered else ()
    vocabulary = _build_vocabulary(sources, before_new_rows, adapters, settings.vocab_mismatch)
    rows = vocabulary.require_rows(settings.new_token_init is not None)
    per_adapter = settings.rounding == "per_adapter"
    dtype = parse_dtype(settings.dtype)
    merged = apply_adapters(base, adapters, dtype, per_adapter, settings.vocab_mismatch)
    tensors, rows = _with_new_rows(merged.tensors, rows, sources, settings, config)
    named = (sources.base_model, *filter(None, [sources.delta_model]), *sources.lora_models)
    model = Model(tensors, merged.tied, rows, config, sources.tokenizer, named)
    plan = plan_output(model, settings)
    parts = (vocabulary, base, adapters, merged, plan, plain, delta)
    return MergeJob(sources, settings, config, *parts, (*delta_notes, *notes))


def _with_delta(
    sources: Sources, settings: MergeSettings, plain: Checkpoint, delta: Checkpoint | None
) -> tuple[Checkpoint, tuple[str, ...]]:
    """What the adapters are merged into, after asking a few values whether base and delta are such;
    and notes on the delta.
    """
    from ..deltas.dense import DeltaForm, with_delta
    from ..deltas.differences import require_difference, require_known_filling, require_model

    if not settings.allow_unknown_combination:
        require_model(
            plain,
            sources.base.path,
            "base model",
            "give the LLaMA that the delta was made from with --base_model, and the delta with "
            "--delta_model; for a model whose norms are so nevertheless, "
            "--allow_unknown_combination",
        )
    if delta is None or sources.delta is None:
        return plain, ()
    require_difference(plain, delta, sources.delta.path)
    base, result = with_delta(plain, delta, DeltaForm(settings.delta_embeddings))
    called = (sources.delta_model or "", str(delta.config.get("_name_or_path", "")))
    require_known_filling(
        result.grown,
        called,
        "apply it first, with apply_delta.py --new_token_init mean, and give its result as "
        "--base_model",
    )
    whole = (f"{name} is the delta's, whole ({why})" for name, why in result.whole.items())
    return base, tuple(whole)


def _with_new_rows(
    tensors: Mapping[str, LazyTensor],
    rows: int,
    sources: Sources,
    settings: MergeSettings,
    config: ModelConfig,
) -> tuple[Mapping[str, LazyTensor], int]:
    """Grow the vocabulary to the tokenizer where it has more tokens and that was asked for."""
    from ..deltas.new_rows import grow_to_tokenizer

    tokens, own, init = sources.tokenizer.n_tokens, sources.base_tokenizer, settings.new_token_init
    if init is None or tokens is None or tokens <= rows:
        return tensors, rows
    tokenizer = require_sentencepiece(sources.tokenizer, "--new_token_init")
    total = tokenizer.n_tokens
    if own is not None and own.n_tokens == rows:
        require_extension(require_sentencepiece(own, "--new_token_init"), tokenizer)
    return grow_to_tokenizer(tensors, tokenizer, total, rows, init, config.config), total


def require_consistent_copies(adapters: Sequence[Adapter]) -> None:
    """Raise ``AdapterError`` for what only the content of adapters tells. Reads what they hold
    twice.
    """
    from ..deltas.saved_modules import require_equal_copies

    for adapter in adapters:
        require_equal_copies(adapter.weights, adapter.copies)


def _require_ignored_files(adapters: Sequence[Adapter], names: Sequence[str]) -> None:
    """A file that was to be ignored and is nowhere is a slip of the pen."""
    there = {name for adapter in adapters for name in adapter.files.ignored}
    if lost := [name for name in names if name not in there]:
        raise UsageError(
            "--ignore_file names a file that is in no adapter's folder",
            expected="the name of a file, without its folder",
            found=lost[0],
            remedy="check the spelling, or leave the option out",
        )


def _read_value_heads(adapters: Sequence[Adapter]) -> dict[str, bytes]:
    """Value heads beside adapters, which go along as they are. Raises ``UsageError`` for two."""
    found: dict[str, bytes] = {}
    for path in (path for adapter in adapters for path in adapter.files.heads):
        content = read_small(path, _MOST_HEAD_BYTES)
        if found.setdefault(path.name, content) != content:
            raise UsageError(
                "two adapters bring value heads of one name that differ, and only one can go along",
                file=path,
                expected="one value head, or the same in both",
                found=f"another {path.name} in an adapter before it",
                remedy=f"move away the one that is not wanted, or say --ignore_file {path.name}",
            )
    return found


def _require_different(adapters: Sequence[Adapter]) -> None:
    """A copy of an adapter under another name would be added twice."""
    for number, adapter in enumerate(adapters):
        for other in adapters[:number]:
            same_size = adapter.weights.stat().st_size == other.weights.stat().st_size
            if same_size and adapter.digest == other.digest:
                raise UsageError(
                    "the same adapter is given twice, in two folders; it would be added twice",
                    file=adapter.weights,
                    found=f"the same bytes as {other.weights}",
                    remedy="name each adapter once",
                )


def _require_known_order(
    sources: Sources, base: Checkpoint, adapters: Sequence[Adapter]
) -> tuple[str, ...]:
    from ..checksums.adapter_order import AdapterInput, require_known_order
    from ..layouts.decoder import VOCABULARY_TENSORS, count_embedding_rows

    given = [
        AdapterInput(
            source,
            a.published,
            a.config.base_model_name_or_path,
            next(
                (a.replaced[name].rows for name in VOCABULARY_TENSORS if name in a.replaced), None
            ),
        )
        for source, a in zip(sources.lora_models, adapters, strict=True)
    ]
    return require_known_order(
        count_embedding_rows(base.tensors), given, _read_merged_names(sources.base)
    )


def _read_merged_names(base: ModelFolder) -> list[str | None] | None:
    """Published names of the adapters that a base's own manifest says were merged into it."""
    from ..checksums.known_files import identify_adapter

    try:
        manifest = base.read_json(MANIFEST_NAME) if MANIFEST_NAME in base.files else {}
        entries = manifest["inputs"]["adapters"] if manifest else None
        digests = [[str(f["sha256"]) for f in entry["files"]] for entry in entries or ()]
    except (FormatError, KeyError, TypeError):  # not one of ours: it tells nothing
        return None
    names = [[identify_adapter(digest) for digest in entry] for entry in digests]
    return [next(filter(None, of_one), None) for of_one in names] or None


def _build_vocabulary(
    sources: Sources, base: Checkpoint, adapters: Sequence[Adapter], mismatch: str
) -> Vocabulary:
    from ..deltas.apply import count_low_rank_rows
    from ..layouts.decoder import HEAD_OF, count_embedding_rows, embeddings

    def rows(adapter: Adapter, name: str) -> int | None:
        return adapter.replaced[name].rows if name in adapter.replaced else None

    name = embeddings(base.tensors)
    assert name is not None, "a base is opened only with embeddings"
    tokenizer = sources.tokenizer
    return Vocabulary(
        count_embedding_rows(base.tensors),
        tuple(
            AdapterRows(
                adapter.name,
                rows(adapter, name),
                rows(adapter, HEAD_OF[name]),
                adapter.config.ensure_weight_tying,
                count_low_rank_rows(adapter),
                next((tensor.rows for tensor in adapter.new_rows.values()), 0),
            )
            for adapter in adapters
        ),
        tokenizer.n_tokens,
        tokenizer.path,
        sources.base_tokenizer.n_tokens if sources.base_tokenizer else None,
        recognize_bytes(tokenizer.vocabulary),
        mismatch,
        isinstance(tokenizer, OpaqueTokenizer),
    )
