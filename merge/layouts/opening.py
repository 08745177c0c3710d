"""A folder with a model, in whichever layout it is: told apart by names, opened by its reader.

Nothing here needs torch until a checkpoint is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .config import CONFIG_NAME
from .llama import META_SHARD
from .params import PARAMS_NAME

if TYPE_CHECKING:
    from ..storage.offload import Offload
    from ..tensors.lazy import Checkpoint

_HF_WEIGHTS = ("pytorch_model*.bin", "*.safetensors", "*.bin.index.json")


def is_gguf(path: Path) -> bool:
    """Whether this is a ``.gguf`` file, or a folder that has such files and no other weights."""
    if not path.is_dir():
        return path.suffix == ".gguf"
    others = (*_HF_WEIGHTS, "*.pth")
    return any(path.glob("*.gguf")) and not any(any(path.glob(pattern)) for pattern in others)


def is_meta(folder: Path) -> bool:
    """Whether a folder is in Meta's layout: its weights are, or it has ``params.json`` alone.

    A folder that has Hugging Face's weights too is read as Hugging Face's.
    """
    if any(True for pattern in _HF_WEIGHTS for _ in folder.glob(pattern)):
        return False
    if any(META_SHARD.fullmatch(path.name) for path in folder.glob("*.pth")):
        return True
    return (folder / PARAMS_NAME).is_file() and not (folder / CONFIG_NAME).is_file()


def config_path(folder: Path) -> Path:
    """The file that says what the model in a folder is."""
    return folder / (PARAMS_NAME if is_meta(folder) else CONFIG_NAME)


def open_checkpoint(
    folder: Path,
    offload: Offload | None = None,
    context_length: int | None = None,
    with_extra: bool = False,
    any_decoder: bool = False,
) -> Checkpoint:
    """Open a model in any layout, under Hugging Face's names and order.

    ``folder`` may be a ``.gguf`` file too. ``context_length`` is for Meta's layout, which does not
    say it. With ``with_extra`` a Hugging Face folder may hold more than a LLaMA does; that is kept
    apart. With ``any_decoder`` it may hold a model that is no LLaMA, which keeps its own names and
    order. Raises ``LayoutError`` and
    ``FormatError`` for what is no whole model, ``UsageError`` for a ``context_length`` that the
    folder's own ``config.json`` would contradict.
    """
    if is_meta(folder):
        from . import meta

        return meta.open_base(folder, offload, context_length)
    if is_gguf(folder):
        from .gguf import reading as gguf

        return gguf.open_gguf(folder, offload.io if offload else "auto")
    if context_length is not None:
        raise UsageError(
            "--context_length is only for models in Meta's layout, which does not say it",
            file=folder,
            found=f"Hugging Face's layout, with {CONFIG_NAME}",
            remedy=f"leave it out; {CONFIG_NAME} says it (max_position_embeddings)",
        )
    from . import huggingface

    return huggingface.open_base(folder, offload, with_extra, any_decoder)
