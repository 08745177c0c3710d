"""Open what adapters are merged into: a base, with the dense delta on it where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..job_settings import MergeSettings
from ..messages import tr
from ..plan.inputs import Sources
from .shared_models import OpenedModels

if TYPE_CHECKING:
    from ..tensors.lazy import Checkpoint


def open_base(
    sources: Sources, settings: MergeSettings, models: OpenedModels
) -> tuple[Checkpoint, Checkpoint | None, Checkpoint, tuple[str, ...]]:
    """Open the plain base and the dense delta; return both, the base that adapters are merged into,
    which is their sum with the layers that an adapter repeats, and notes.
    """
    from ..deltas.dense import open_model
    from ..deltas.replication import replicate_layers
    from ..layouts.gguf.base import require_quantized_allowed
    from ..layouts.opening import open_checkpoint

    any_decoder, length = sources.delta is None, settings.context_length
    opened, plain = models.open(
        "base_model",
        lambda offload: open_checkpoint(sources.base, offload, length, any_decoder=any_decoder),
    )
    lost = require_quantized_allowed(opened, settings.allow_quantized_input)
    delta = None
    if (folder := sources.delta) is not None:
        _, delta = models.open("delta_model", lambda offload: open_model(folder, offload))
    summed, notes = _with_delta(sources, settings, plain, delta)
    base, replicated = replicate_layers(summed, sources.adapters)
    return plain, delta, base, (*lost, *notes, *replicated)


def _with_delta(
    sources: Sources, settings: MergeSettings, plain: Checkpoint, delta: Checkpoint | None
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Add the delta to the base, after a check of a few values of both; with notes on the delta."""
    from ..deltas.dense import DeltaForm, with_delta
    from ..deltas.differences import require_difference, require_known_filling, require_model

    if not settings.allow_unknown_combination:
        require_model(
            plain,
            sources.base.path,
            tr("base model"),
            tr(
                "give the LLaMA that the delta was made from with --base_model, and "
                "the delta with --delta_model; for a model whose norms are so "
                "nevertheless, --allow_unknown_combination"
            ),
        )
    if delta is None or sources.delta is None:
        return plain, ()
    require_difference(plain, delta, sources.delta.path)
    base, result = with_delta(plain, delta, DeltaForm(settings.delta_embeddings))
    called = (sources.delta_model or "", str(delta.config.get("_name_or_path", "")))
    require_known_filling(
        result.grown,
        called,
        tr(
            "apply it first, with apply_delta.py --new_token_init mean, and give "
            "its result as --base_model"
        ),
    )
    whole = (
        tr("{name} is taken whole from the delta ({why})", name=name, why=why)
        for name, why in result.whole.items()
    )
    return base, tuple(whole)
