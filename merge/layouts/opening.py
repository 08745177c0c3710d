"""A model in whichever layout it is, opened by its reader.

Nothing here needs torch until a checkpoint is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..messages import tr
from .config import CONFIG_NAME
from .model_folder import ModelFolder

if TYPE_CHECKING:
    from ..storage.offload import Offload
    from ..tensors.lazy import Checkpoint


def open_checkpoint(
    model: ModelFolder | Path,
    offload: Offload | None = None,
    context_length: int | None = None,
    with_extra: bool = False,
    any_decoder: bool = False,
    any_quantized: bool = False,
) -> Checkpoint:
    """Open a model in any layout, under Hugging Face's names and order.

    ``model`` may be a ``.gguf`` file too. ``context_length`` is for Meta's layout, which does not
    say it. With ``with_extra`` a Hugging Face folder may hold more than a LLaMA does; that is kept
    apart. With ``any_decoder`` it may hold a model that is no LLaMA, which keeps its own names and
    order. With ``any_quantized`` a GGUF file may be in any type of blocks, as no base may be.
    Raises ``LayoutError`` and ``FormatError`` for what is no whole model, ``UsageError`` for a
    ``context_length`` that the folder's own ``config.json`` would contradict.
    """
    folder = model if isinstance(model, ModelFolder) else ModelFolder(model)
    if folder.is_meta:
        from . import meta

        return meta.open_base(folder, offload, context_length)
    if folder.is_gguf:
        from .gguf import reading as gguf

        return gguf.open_gguf(folder, offload.io if offload else "auto", any_quantized)
    if context_length is not None:
        raise UsageError(
            tr("--context_length is only for models in Meta's layout, which does not say it"),
            file=folder.path,
            found=tr("Hugging Face's layout, with {config_name}", config_name=CONFIG_NAME),
            remedy=tr(
                "leave it out; {config_name} says it (max_position_embeddings)",
                config_name=CONFIG_NAME,
            ),
        )
    from . import huggingface

    return huggingface.open_base(folder, offload, with_extra, any_decoder)
