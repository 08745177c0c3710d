"""Grow a model's vocabulary to a larger tokenizer, so that training can start from it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any

from ..layouts.model_folder import ModelFolder
from ..plan.documents import find_config
from ..plan.inputs import Sources, find_tokenizer, resolve, resolve_tokenizer
from ..plan.vocabulary import require_extension
from ..settings import (
    NEW_TOKEN_INITS,
    OnProgress,
    OutputSettings,
    model_name,
    require_one_of,
    require_positive,
    settings_named,
)
from ..storage.offload import Offload
from ..tokenizers.copied import require_sentencepiece
from ..tokenizers.huggingface import read_tokenizer
from .planned import Input, PlannedJob, carry_out
from .writing import Report, claimed


def resize_vocabulary(
    base_model: str | Path,
    tokenizer: str | Path,
    output_dir: str | Path,
    *,
    init: str = "subtokens",
    pad_to_multiple_of: int | None = None,
    seed: int = 0,
    offload_dir: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Report:
    """Write ``base_model`` with embeddings and LM head grown to ``tokenizer``.

    ``init`` is one of ``NEW_TOKEN_INITS``; the tensors keep their dtype unless ``dtype`` is given.
    Raises ``MergeError``: above all when the tokenizer is no extension of the base's, since then
    the old rows would stand for other tokens.
    """
    started = time.monotonic()
    defaults = {"output_type": "huggingface", "dtype": "auto", "model_name": model_name(output_dir)}
    known = signature(resize_vocabulary).parameters
    chosen = settings_named(OutputSettings, defaults | settings, known)
    require_one_of("init", init, NEW_TOKEN_INITS)
    require_positive("pad_to_multiple_of", pad_to_multiple_of)
    output = Path(output_dir).expanduser()
    parent = Path(offload_dir).expanduser() if offload_dir else None
    with ExitStack() as held:
        offload = held.enter_context(Offload(parent, output, chosen.io))
        sources = _find_sources(str(base_model), str(tokenizer), offload)
        claim = claimed(output, sources.folders, chosen, overwrite, dry_run)
        target = held.enter_context(claim)
        job = _prepare(sources, chosen, init, pad_to_multiple_of, seed, offload)
        run = {"overwrite": overwrite, "dry_run": dry_run}
        return carry_out(job, target, chosen, started, on_progress, **run)


def _find_sources(base_model: str, tokenizer: str, offload: Offload) -> Sources:
    base = ModelFolder(resolve(base_model, "base model", offload))
    new = read_tokenizer(resolve_tokenizer(tokenizer, offload).path)
    own = find_tokenizer([base])
    if own is not None:
        require_extension(own, new)
    return Sources(base_model, (), base, (), new, own)


def _prepare(
    sources: Sources,
    settings: OutputSettings,
    init: str,
    pad_to_multiple_of: int | None,
    seed: int,
    offload: Offload,
) -> PlannedJob:
    if not sources.base.is_meta:
        find_config(sources)

    from ..deltas.new_rows import grow_to_tokenizer
    from ..layouts.llama import EMBED_TOKENS, LM_HEAD
    from ..layouts.opening import open_checkpoint
    from ..plan.placement import Model, plan_output
    from ..tensors.digests import digested_checkpoint
    from ..tensors.lazy import dtype_named
    from ..tensors.patched import PatchedTensor

    base = digested_checkpoint(open_checkpoint(sources.base, offload))
    config = find_config(sources, base)
    base_rows = base.tensors[EMBED_TOKENS].rows
    tokenizer = require_sentencepiece(sources.tokenizer, "growing the vocabulary")
    tokens = tokenizer.n_tokens
    rows = _rows(tokens, base_rows, pad_to_multiple_of)
    own = sources.base_tokenizer
    known = min(base_rows, own.n_tokens or tokens if own is not None else tokens)
    tensors = grow_to_tokenizer(base.tensors, tokenizer, rows, known, init, config.config, seed)
    dtype = dtype_named(settings.dtype)
    tied = bool(base.config.get("tie_word_embeddings"))
    cast = {
        name: PatchedTensor(tensor.shape, dtype or tensor.dtype, tensor.origin, tensor)
        for name, tensor in tensors.items()
        if not (tied and name == LM_HEAD)
    }
    model = Model(cast, tied, rows, config, sources.tokenizer, (sources.base_model,))
    plan = plan_output(model, settings)
    padding = f", {rows - tokens} of padding" if rows > tokens else ""
    return PlannedJob(
        plan,
        {"base_model": Input(sources.base_model, sources.base.path, base)},
        tokenizer,
        {
            "dtype": settings.dtype,
            "init": init,
            "seed": seed,
            "pad_to_multiple_of": pad_to_multiple_of,
        },
        (f"rows       {base_rows} -> {rows}, new ones from {init}{padding}",),
        ("the new rows are a beginning: the model has to be trained on text that uses them",),
    )


def _rows(tokens: int, base_rows: int, pad_to_multiple_of: int | None) -> int:
    """Rows of the result: never fewer than tokens or than the base has, padded if asked."""
    rows = max(tokens, base_rows)
    multiple = pad_to_multiple_of or 1
    return -(-rows // multiple) * multiple
