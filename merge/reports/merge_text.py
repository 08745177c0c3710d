"""The lines of a merge's summary: inputs, changes and notes."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from ..checksums.known_files import load_known_files
from ..deltas.adapter_files import is_weight_file
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

if TYPE_CHECKING:
    from ..deltas.adapter import Adapter
    from ..deltas.apply import MergedModel
    from ..job_settings import MergeSettings
    from ..plan.documents import ModelConfig
    from ..plan.inputs import Sources
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
    def notes(self) -> tuple[str, ...]: ...


EXACT_IDS = (
    "for exactly SentencePiece's token ids, load the tokenizer with "
    "AutoTokenizer.from_pretrained(..., trust_remote_code=True); without it transformers "
    "splits some lines differently, silently"
)

COPIED = "the tokenizer's files are copied as they are"


def describe_inputs(job: PlannedMerge) -> Iterator[str]:
    """Describe where base, adapters and tokenizer are, with their sizes."""
    from ..layouts.decoder import count_embedding_rows

    yield f"base       {job.sources.base.path} ({count_embedding_rows(job.plain.tensors)} rows)"
    if job.sources.delta is not None:
        yield f"delta      {job.sources.delta.path} ({job.vocabulary.base_rows} rows)"
    for number, adapter in enumerate(job.adapters, start=1):
        known = _known(adapter.published)
        said = adapter.config.base_model_name_or_path
        on = f"; trained on {said}" if said else ""
        yield f"adapter {number}  {adapter.folder.path} ({_scalings(adapter)}; {known}{on})"
    tokenizer = job.sources.tokenizer
    published = load_known_files().get(sha256(tokenizer.vocabulary).hexdigest())
    known = _known(published.model if published else None)
    tokens = tokenizer.n_tokens or "unknown"
    yield f"tokenizer  {tokenizer.path} ({tokens} tokens; {known})"


def _known(model: str | None) -> str:
    return "no published checksum" if model is None else f"published as {model}"


def _scalings(adapter: Adapter) -> str:
    if adapter.config.method:
        return f"{adapter.config.method}, merged by PEFT"
    pairs = sorted({(patch.rank, patch.scaling) for patch in adapter.low_rank.values()})
    if not pairs:
        return "no LoRA matrices"  # whole tensors or rows only
    listed = ", ".join(f"rank {rank} x {scaling:g}" for rank, scaling in pairs[:3])
    return listed + (", ..." if len(pairs) > 3 else "")


def describe_changes(job: PlannedMerge) -> Iterator[str]:
    """Describe what each adapter added to, replaced and grew."""
    steps = [step for done in job.model.steps.values() for step in done]
    for number, _ in enumerate(job.adapters, start=1):
        mine = [step for step in steps if step.adapter == number]
        added = sum(step.action.startswith("added") for step in mine)
        by_peft = sum(step.action == "merged by PEFT" for step in mine)
        rows = sum(step.action in ("rows replaced", "cut") for step in mine)
        replaced = [step for step in mine if step.action == "replaced"]
        grown = sorted(
            {(s.rows_before, s.rows_after) for s in replaced if s.rows_after > s.rows_before}
        )
        growth = "".join(f", grown from {before} to {after} rows" for before, after in grown)
        changed = f", changed rows of {rows}" if rows else ""
        changed += f", {by_peft} merged by PEFT" if by_peft else ""
        yield (
            f"adapter {number}: added to {added} tensors, replaced {len(replaced)}{growth}{changed}"
        )
    untouched = sum(not done for done in job.model.steps.values())
    yield f"{untouched} tensors as in the base; rounded {job.settings.rounding.replace('_', ' ')}"


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
            f"{tokens - rows} tokens have no row in any adapter: theirs begin as "
            f"{job.settings.new_token_init}, so the model has to be trained on"
        )
    if padding := job.vocabulary.padding(rows):
        needs = "; llama.cpp's converter needs --pad-vocab for that"
        yield (
            f"{rows} rows for {job.vocabulary.tokens} tokens: the last {padding} are padding"
            + (needs if job.settings.output_type == "pth" else "")
        )
    stated = job.base.config.get("vocab_size")
    if stated != job.vocabulary.base_rows:
        yield f"the base's config.json says vocab_size {stated}; the weights decide"
    if unread := sorted(_unread_weights(job)):
        yield f"weight files of the base that are not read: {', '.join(unread)}"
    if job.base.dropped:
        yield f"left out {len(job.base.dropped)} rotary buffers of an old conversion"
    yield from job.model.notes
    for adapter in job.adapters:
        if adapter.ignored:
            yield f"{adapter.name}: untrained copies ignored: {', '.join(adapter.ignored)}"
        if adapter.renamed:
            yield f"{adapter.name}: {adapter.renamed}"
        if adapter.files.trainable_params:
            name = adapter.files.trainable_params.name
            yield f"{adapter.name}: {name} read too, whose tensors replace the base's"
        if adapter.files.new_rows:
            count = next(iter(adapter.new_rows.values())).rows
            yield f"{adapter.name}: {count} rows of {adapter.files.new_rows.name} follow the base's"
        if adapter.files.heads:
            names = ", ".join(path.name for path in adapter.files.heads)
            kept = job.settings.output_type == "huggingface"
            outcome = "copied as it is" if kept else "has no place in this type of output"
            yield f"{adapter.name}: {names} {outcome}"
        if adapter.files.duplicate:
            yield f"{adapter.name}: {adapter.files.duplicate.name} holds the same and is not needed"
        if adapter.files.ignored:
            yield f"{adapter.name}: ignored as asked: {', '.join(adapter.files.ignored)}"
        if adapter.files.unknown:
            yield f"{adapter.name}: files not read: {', '.join(adapter.files.unknown)}"
        if adapter.config.unknown:
            yield f"{adapter.name}: fields not known here: {', '.join(adapter.config.unknown)}"
        if adapter.config.weight == 0:
            yield f"{adapter.name}: its weight is 0, so nothing that it adds is merged"
        if adapter.config.weight != 1 and adapter.replaced:
            yield (
                f"{adapter.name}: its weight {adapter.config.weight:g} is for what it adds; the "
                f"{len(adapter.replaced)} tensors that it replaces are taken as they are"
            )
        if adapter.changes_nothing:
            yield f"{adapter.name}: every lora_B is zero, so this adapter changes nothing"


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
            yield "Meta's layout has no place for a chat template: it is dropped"
    elif had and not theirs.has_template and not job.settings.chat_template:
        yield (
            f"the base's chat template is dropped: the tokenizer of {theirs.path} has none; put "
            "the base's chat_template.jinja beside it if it is wanted"
        )
