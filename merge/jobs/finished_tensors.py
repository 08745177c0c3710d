"""The tensors of a merge after its adapters: rows for new tokens, and statistics for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..job_settings import MergeSettings
from ..plan.documents import ModelConfig
from ..plan.inputs import Sources
from ..plan.vocabulary import require_extension
from ..tokenizers.embedded_tokenizer import EmbeddedTokenizer
from ..tokenizers.opaque_tokenizer import require_sentencepiece

if TYPE_CHECKING:
    from ..deltas.apply import MergedModel
    from ..deltas.observed import Measurements
    from ..tensors.lazy import Checkpoint, LazyTensor


def finish_tensors(
    merged: MergedModel,
    base: Checkpoint,
    rows: int,
    sources: Sources,
    settings: MergeSettings,
    config: ModelConfig,
) -> tuple[Mapping[str, LazyTensor], int, Measurements | None]:
    """Add rows for new tokens; for a report, let the tensors be measured as they are read."""
    if not settings.report:
        return (*_with_new_rows(merged.tensors, rows, sources, settings, config), None)
    from ..deltas.observed import Measurements, list_replaced, record_changes, record_rows

    recording, changes = record_changes(merged.tensors)
    grown, rows = _with_new_rows(recording, rows, sources, settings, config)
    tensors, kept = record_rows(grown, base.tensors, list_replaced(merged.steps))
    return tensors, rows, Measurements.of(tensors, changes, kept)


def _with_new_rows(
    tensors: Mapping[str, LazyTensor],
    rows: int,
    sources: Sources,
    settings: MergeSettings,
    config: ModelConfig,
) -> tuple[Mapping[str, LazyTensor], int]:
    """Grow the vocabulary to a larger tokenizer's if ``new_token_init`` is given."""
    from ..deltas.new_rows import grow_to_tokenizer

    tokens, own, init = sources.tokenizer.n_tokens, sources.base_tokenizer, settings.new_token_init
    if init is None or tokens is None or tokens <= rows:
        return tensors, rows
    tokenizer = require_sentencepiece(sources.tokenizer, "--new_token_init")
    total = tokenizer.n_tokens
    if own is not None and own.n_tokens == rows:
        if not isinstance(own, EmbeddedTokenizer):
            own = require_sentencepiece(own, "--new_token_init")
        require_extension(own, tokenizer)
    return grow_to_tokenizer(tensors, tokenizer, total, rows, init, config.config), total
