"""A checkpoint to look at, in whichever layout: opened even where something is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..formats import open_container
from ..formats.gguf import get_type_name
from ..layouts import huggingface, llama, meta
from ..layouts.config import CONFIG_NAME
from ..layouts.gguf import reading as gguf
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..storage.offload import Offload
from ..tensors.lazy import LazyTensor


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The tensors of a folder by Hugging Face name, or of one file as they are named there."""

    path: Path
    layout: str
    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any]

    @property
    def dtypes(self) -> str:
        """Every type that occurs: dtypes by name, and such as q8_0."""
        return ", ".join(sorted(set(map(get_type_name, self.tensors.values()))))

    def with_head(self) -> Mapping[str, LazyTensor]:
        """The tensors, with the embeddings as LM head where config.json ties the two."""
        tied = self.config.get("tie_word_embeddings") and llama.EMBED_TOKENS in self.tensors
        if tied and llama.LM_HEAD not in self.tensors:
            return {**self.tensors, llama.LM_HEAD: self.tensors[llama.EMBED_TOKENS]}
        return self.tensors


def open_any(path: Path, offload: Offload | None = None) -> LoadedCheckpoint:
    """Open a folder in any layout, or a single weight file.

    What config.json asks for need not be there: a comparison names what is missing. Raises
    ``UsageError`` for a path that does not exist, ``LayoutError`` and ``FormatError`` for files
    that contradict each other or are damaged.
    """
    folder = ModelFolder(path)
    if path.exists() and folder.is_gguf:
        found = gguf.open_gguf(folder, offload.io if offload else "auto", any_quantized=True)
        return LoadedCheckpoint(path, "GGUF", found.tensors, found.config)
    if path.is_file():
        return LoadedCheckpoint(
            path, tr("one file"), _drop_buffers(open_container(path, offload)), {}
        )
    if not path.is_dir():
        raise UsageError(
            tr("the checkpoint does not exist"),
            file=path,
            expected=tr("a folder with a model, or a weight file"),
            remedy=tr("check the spelling"),
        )
    if folder.is_meta:
        checkpoint = meta.open_base(folder, offload)
        return LoadedCheckpoint(path, "Meta", checkpoint.tensors, checkpoint.config)
    tensors = huggingface.collect_tensors(huggingface.find_weight_files(folder), offload)
    config = folder.config if CONFIG_NAME in folder.files else {}
    return LoadedCheckpoint(path, tr("Hugging Face"), _drop_buffers(tensors), config)


def _drop_buffers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {name: tensor for name, tensor in tensors.items() if not llama.is_rotary_buffer(name)}
