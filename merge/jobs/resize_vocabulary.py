"""Grow a model's vocabulary to a larger tokenizer, so that training can start from it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import VocabularyError
from ..job_settings import ResizeSettings
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..options import takes_options
from ..output.repeated import record_options
from ..plan.documents import find_config
from ..plan.inputs import Sources, choose_any_tokenizer, find_tokenizer
from ..plan.llama3_tokenizer import holds_tokenizer, read_copied_tokenizer
from ..plan.places import find_output, resolve
from ..plan.vocabulary import require_extension
from ..settings import OnProgress, make_settings
from ..storage.offload import Offload
from ..storage.urls import hide_credentials
from ..tokenizers.opaque_tokenizer import OpaqueTokenizer, Tokenizer
from .job_report import Report
from .planned import Input, PlannedJob, write_and_report
from .writing import lock_output

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..keywords import ResizeOptions


@takes_options(ResizeSettings)
def resize_vocabulary(
    base_model: str | Path,
    tokenizer: str | Path,
    output_dir: str | Path,
    *,
    on_progress: OnProgress | None = None,
    **options: Unpack[ResizeOptions],
) -> Report:
    """Write ``base_model`` with embeddings and LM head grown to ``tokenizer``.

    ``options`` are those of the command (docs/options.md), the fields of ``ResizeSettings``.
    Raises ``MergeError``: above all when the tokenizer is no extension of the base's, since then
    the old rows would stand for other tokens.
    """
    started = time.monotonic()
    chosen = make_settings(ResizeSettings, options, output_dir, resize_vocabulary)
    output = find_output(output_dir)
    with ExitStack() as held:
        offload = held.enter_context(Offload(chosen.offload_parent, output, chosen.io))
        sources = _find_sources(str(base_model), str(tokenizer), offload)
        target = held.enter_context(lock_output(output, sources.folders, chosen))
        job = _plan_job(sources, chosen, offload)
        return write_and_report(job, target, chosen, started, on_progress, offload)


def _find_sources(base_model: str, tokenizer: str, offload: Offload) -> Sources:
    base = ModelFolder(resolve(base_model, tr("base model"), offload))
    new = choose_any_tokenizer(tokenizer, base, offload)
    own: Tokenizer | None = find_tokenizer([base])
    if own is None and isinstance(new, OpaqueTokenizer) and holds_tokenizer(base):
        own = read_copied_tokenizer(base, base)
    if own is not None:
        require_extension(own, new)
    return Sources(hide_credentials(base_model), (), base, (), new, own)


def _plan_job(sources: Sources, settings: ResizeSettings, offload: Offload) -> PlannedJob:
    if not sources.base.is_meta:
        find_config(sources)

    from ..deltas.new_rows import grow_to_tokenizer
    from ..layouts.llama import EMBED_TOKENS, LM_HEAD
    from ..layouts.opening import open_checkpoint
    from ..plan.placement import Model, plan_output
    from ..tensors.digests import add_checkpoint_digests
    from ..tensors.lazy import parse_dtype
    from ..tensors.patched import PatchedTensor

    base = add_checkpoint_digests(open_checkpoint(sources.base, offload))
    config = find_config(sources, base)
    base_rows = base.tensors[EMBED_TOKENS].rows
    tokenizer = sources.tokenizer
    tokens = _count_tokens(tokenizer)
    rows = _count_rows(tokens, base_rows, settings.pad_to_multiple_of)
    own = sources.base_tokenizer
    known = min(base_rows, own.n_tokens or tokens if own is not None else tokens)
    tensors = grow_to_tokenizer(
        base.tensors, tokenizer, rows, known, settings.init, config.config, settings.seed
    )
    dtype = parse_dtype(settings.dtype)
    tied = bool(base.config.get("tie_word_embeddings"))
    cast = {
        name: PatchedTensor(tensor.shape, dtype or tensor.dtype, tensor.origin, tensor)
        for name, tensor in tensors.items()
        if not (tied and name == LM_HEAD)
    }
    model = Model(cast, tied, rows, config, sources.tokenizer, (sources.base_model,))
    plan = plan_output(model, settings)
    padding = tr(", {rows} of padding", rows=rows - tokens) if rows > tokens else ""
    return PlannedJob(
        plan,
        {"base_model": Input(sources.base_model, sources.base.path, base)},
        tokenizer,
        {
            "dtype": settings.dtype,
            "init": settings.init,
            "seed": settings.seed,
            "pad_to_multiple_of": settings.pad_to_multiple_of,
        },
        (
            tr(
                "rows       {base_rows} -> {rows}, new ones from {init}{padding}",
                base_rows=base_rows,
                rows=rows,
                init=settings.init,
                padding=padding,
            ),
        ),
        (tr("the new rows are a beginning: the model has to be trained on text that uses them"),),
        record_options("resize", settings),
    )


def _count_tokens(tokenizer: Tokenizer) -> int:
    """Raises ``VocabularyError`` for a tokenizer in whose files there are no ids."""
    if tokenizer.n_tokens is None:
        raise VocabularyError(
            tr("the files of this tokenizer do not say how many tokens it has"),
            file=tokenizer.path,
            expected=tr("a tokenizer.model or a tokenizer.json"),
            found=", ".join(getattr(tokenizer, "contents", ())),
            remedy=tr("name the folder of the larger tokenizer with --tokenizer"),
        )
    return tokenizer.n_tokens


def _count_rows(tokens: int, base_rows: int, pad_to_multiple_of: int | None) -> int:
    """Rows of the result: never fewer than tokens or than the base has, padded if asked."""
    rows = max(tokens, base_rows)
    multiple = pad_to_multiple_of or 1
    return -(-rows // multiple) * multiple
