"""The lines of a merge's summary: inputs, changes and notes."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from ..checksums.known_files import load_known_files
from ..deltas.adapter_files import is_weight_file
from ..messages import compose, join, tr
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

if TYPE_CHECKING:
    from ..deltas.adapter import Adapter
    from ..deltas.apply import MergedModel
    from ..job_settings import MergeSettings
    from ..plan.documents import ModelConfig
    from ..plan.inputs import Sources
    from ..plan.placement import Plan
    from ..plan.vocabulary import Vocabulary
    from ..tensors.lazy import Checkpoint


class PlannedMerge(Protocol):
    """What a summary reads of a planned merge; see ``jobs.merge_lora.MergeJob``."""

    @property
    def sources(self) -> Sources: ...
    @property
    def settings(self) -> MergeSettings: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def base(self) -> Checkpoint: ...
    @property
    def adapters(self) -> tuple[Adapter, ...]: ...
    @property
    def model(self) -> MergedModel: ...
    @property
    def plain(self) -> Checkpoint: ...
    @property
    def delta(self) -> Checkpoint | None: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


EXACT_IDS = tr(
    "for exactly SentencePiece's token ids, load the tokenizer with "
    "AutoTokenizer.from_pretrained(..., trust_remote_code=True); without "
    "it transformers splits some lines differently, silently"
)

COPIED = tr("the tokenizer's files are copied as they are")
_ROUNDINGS = {"once": tr("once"), "per_adapter": tr("after each adapter")}


def describe_inputs(job: PlannedMerge) -> Iterator[str]:
    """Describe where base, adapters and tokenizer are, with their sizes."""
    from ..layouts.decoder import count_embedding_rows

    yield tr(
        "base       {path} ({rows} rows)",
        path=job.sources.base.path,
        rows=count_embedding_rows(job.plain.tensors),
    )
    if job.sources.delta is not None:
        yield tr(
            "delta      {path} ({rows} rows)",
            path=job.sources.delta.path,
            rows=job.vocabulary.base_rows,
        )
    for number, adapter in enumerate(job.adapters, start=1):
        known = _known(adapter.published)
        said = adapter.config.base_model_name_or_path
        on = tr("; trained on {said}", said=said) if said else ""
        yield tr(
            "adapter {number}  {path} ({scalings}; {known}{on})",
            number=number,
            path=adapter.folder.path,
            scalings=_scalings(adapter),
            known=known,
            on=on,
        )
    tokenizer = job.sources.tokenizer
    published = load_known_files().get(sha256(tokenizer.vocabulary).hexdigest())
    known = _known(published.model if published else None)
    tokens = tokenizer.n_tokens or tr("unknown")
    yield tr(
        "tokenizer  {path} ({tokens} tokens; {known})",
        path=tokenizer.path,
        tokens=tokens,
        known=known,
    )


def _known(model: str | None) -> str:
    return tr("no published checksum") if model is None else tr("published as {model}", model=model)


def _scalings(adapter: Adapter) -> str:
    if adapter.config.method:
        return tr("{method}, merged by PEFT", method=adapter.config.method)
    pairs = sorted({(patch.rank, patch.scaling) for patch in adapter.low_rank.values()})
    if not pairs:
        return tr("no LoRA matrices")  # whole tensors or rows only
    ranks = (tr("rank {rank} x {scaling:g}", rank=r, scaling=scaling) for r, scaling in pairs[:3])
    listed = join(", ", ranks)
    return listed + (", ..." if len(pairs) > 3 else "")


def describe_changes(job: PlannedMerge) -> Iterator[str]:
    """Describe what each adapter added to, replaced and grew, and what none has touched."""
    for number, _ in enumerate(job.adapters, start=1):
        changes = describe_adapter_changes(job, number)
        yield tr("adapter {number}: {changes}", number=number, changes=changes)
    yield describe_untouched(job)


def describe_adapter_changes(job: PlannedMerge, number: int) -> str:
    """What the adapter of this number, from 1 on, added to, replaced and grew."""
    mine = [s for steps in job.model.steps.values() for s in steps if s.adapter == number]
    by_peft = sum(step.action == "merged by PEFT" for step in mine)
    rows = sum(step.action in ("rows replaced", "cut") for step in mine)
    replaced = [step for step in mine if step.action == "replaced"]
    grown = {(s.rows_before, s.rows_after) for s in replaced if s.rows_after > s.rows_before}
    further = (
        *(
            tr(", grown from {before} to {after} rows", before=before, after=after)
            for before, after in sorted(grown)
        ),
        *((tr(", changed rows of {rows}", rows=rows),) if rows else ()),
        *((tr(", {by_peft} merged by PEFT", by_peft=by_peft),) if by_peft else ()),
    )
    return tr(
        "added to {added} tensors, replaced {replaced}{further}",
        added=sum(step.action.startswith("added") for step in mine),
        replaced=len(replaced),
        further=join("", further),
    )


def describe_untouched(job: PlannedMerge) -> str:
    """How many tensors are as in the base, and when the others are rounded."""
    return tr(
        "{untouched} tensors as in the base; rounded {rounding}",
        untouched=sum(not done for done in job.model.steps.values()),
        rounding=_ROUNDINGS[job.settings.rounding],
    )


def describe_notes(job: PlannedMerge) -> Iterator[str]:
    """Describe what the reader should know before using the result."""
    yield from job.config.notes
    yield from job.notes
    if job.settings.output_type != "pth" and job.config.config is job.base.config:
        yield from job.base.notes
    understood = isinstance(job.sources.tokenizer, SentencePieceTokenizer)
    if job.settings.output_type == "huggingface":
        yield EXACT_IDS if understood else COPIED
    yield from _template_notes(job)
    tokens, rows = job.vocabulary.tokens or 0, job.vocabulary.require_rows(new_tokens=True)
    if understood and tokens > rows:
        yield (
            tr(
                "{tokens} tokens have no row in any adapter: theirs begin as "
                "{new_token_init}, so the model has to be trained on",
                tokens=tokens - rows,
                new_token_init=job.settings.new_token_init,
            )
        )
    if padding := job.vocabulary.padding(rows):
        needs = tr("; llama.cpp's converter needs --pad-vocab for that")
        yield (
            tr(
                "{rows} rows for {tokens} tokens: the last {padding} are padding",
                rows=rows,
                tokens=job.vocabulary.tokens,
                padding=padding,
            )
            + (needs if job.settings.output_type == "pth" else "")
        )
    stated = job.base.config.get("vocab_size")
    if stated != job.vocabulary.base_rows:
        yield tr(
            "the base's config.json says vocab_size {stated}; the weights decide", stated=stated
        )
    if unread := sorted(_unread_weights(job)):
        yield tr("weight files of the base that are not read: {unread}", unread=", ".join(unread))
    if job.base.dropped:
        yield tr(
            "left out {n_dropped} rotary buffers of an old conversion",
            n_dropped=len(job.base.dropped),
        )
    yield from job.model.notes
    for adapter in job.adapters:
        if adapter.ignored:
            yield tr(
                "{name}: untrained copies ignored: {ignored}",
                name=adapter.name,
                ignored=", ".join(adapter.ignored),
            )
        if adapter.renamed:
            yield compose("{name}: {about}", name=adapter.name, about=adapter.renamed)
        if adapter.files.trainable_params:
            name = adapter.files.trainable_params.name
            yield tr(
                "{name}: {name_2} read too, whose tensors replace the base's",
                name=adapter.name,
                name_2=name,
            )
        if adapter.files.new_rows:
            count = next(iter(adapter.new_rows.values())).rows
            yield tr(
                "{name}: {count} rows of {name_2} follow the base's",
                name=adapter.name,
                count=count,
                name_2=adapter.files.new_rows.name,
            )
        if adapter.files.heads:
            names = ", ".join(path.name for path in adapter.files.heads)
            kept = job.settings.output_type == "huggingface"
            outcome = tr("copied as it is") if kept else tr("has no place in this type of output")
            about = compose("{names} {outcome}", names=names, outcome=outcome)
            yield compose("{name}: {about}", name=adapter.name, about=about)
        if adapter.files.duplicate:
            yield tr(
                "{name}: {name_2} holds the same and is not needed",
                name=adapter.name,
                name_2=adapter.files.duplicate.name,
            )
        if adapter.files.ignored:
            yield tr(
                "{name}: ignored as asked: {ignored}",
                name=adapter.name,
                ignored=", ".join(adapter.files.ignored),
            )
        if adapter.files.unknown:
            yield tr(
                "{name}: files not read: {unknown}",
                name=adapter.name,
                unknown=", ".join(adapter.files.unknown),
            )
        if adapter.config.unknown:
            yield tr(
                "{name}: fields not known here: {unknown}",
                name=adapter.name,
                unknown=", ".join(adapter.config.unknown),
            )
        if adapter.config.weight == 0:
            yield tr(
                "{name}: its weight is 0, so nothing that it adds is merged", name=adapter.name
            )
        if adapter.config.weight != 1 and adapter.replaced:
            yield (
                tr(
                    "{name}: its weight {weight:g} is for what it adds; the {n_replaced} "
                    "tensors that it replaces are taken as they are",
                    name=adapter.name,
                    weight=adapter.config.weight,
                    n_replaced=len(adapter.replaced),
                )
            )
        if adapter.changes_nothing:
            yield tr(
                "{name}: every lora_B is zero, so this adapter changes nothing", name=adapter.name
            )


def _unread_weights(job: PlannedMerge) -> Iterator[str]:
    """Return names of weight files beside the base's own, without what trainers leave there."""
    folder = job.sources.base
    read = {path.resolve() for path in job.plain.files}
    for path in folder.files.values():
        if is_weight_file(path) and path.resolve() not in read:
            yield path.name


def _template_notes(job: PlannedMerge) -> Iterator[str]:
    """Describe a chat template that is dropped."""
    theirs, own = job.sources.tokenizer, job.sources.base_tokenizer
    had = own is not None and own.has_template
    if job.settings.output_type == "pth":
        if had or theirs.has_template:
            yield tr("Meta's layout has no place for a chat template: it is dropped")
    elif had and not theirs.has_template and not job.settings.chat_template:
        yield (
            tr(
                "the base's chat template is dropped: the tokenizer of {path} has "
                "none; put the base's chat_template.jinja beside it if it is wanted",
                path=theirs.path,
            )
        )
