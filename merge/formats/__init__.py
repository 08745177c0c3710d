"""Bytes on disk: one file per container, its reader and its writer side by side.

A reader takes an ``InputFile`` and returns its tensors by name, lazily. The format is detected
from the first bytes, never by the file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import FormatError
from ..messages import tr
from ..storage.input_file import InputFile
from ..storage.offload import Offload
from ..tensors.lazy import LazyTensor
from . import gguf, safetensors
from .container import ContainerWriter, TensorInfo
from .torch import archive as torch_zip
from .torch import legacy as torch_legacy

__all__ = ["WRITERS", "ContainerWriter", "InputFile", "TensorInfo", "open_container"]

# By the ending of the files that Hugging Face, Meta and llama.cpp name so.
WRITERS: dict[str, Callable[[BinaryIO, Sequence[TensorInfo]], ContainerWriter]] = {
    ".bin": torch_zip.TorchZipWriter,
    ".pth": torch_zip.TorchZipWriter,
    ".safetensors": safetensors.SafetensorsWriter,
    ".gguf": gguf.GgufWriter,
}


def open_container(
    path: Path, offload: Offload | None = None, alone: str | None = None
) -> dict[str, LazyTensor]:
    """Return the tensors of a weight file, by name, from its header alone.

    ``alone`` is what a tensor is called that torch saved without a name, which is else refused.
    Raises ``FormatError`` for an unknown or damaged container.
    """
    file = InputFile(path, offload.io if offload else "auto")
    head = file.read_head()
    if head.startswith(torch_zip.MAGIC):
        return torch_zip.read(file, offload, alone)
    if head.startswith(torch_legacy.MAGIC):
        return torch_legacy.read(file, alone)
    if head.startswith(gguf.MAGIC):
        return gguf.read(file).tensors
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return safetensors.read(file)
    raise FormatError(
        tr("this is not a weight file of a known format"),
        file=path,
        expected=tr("a torch checkpoint (.bin, .pth), safetensors or GGUF"),
        found=tr("a file that begins with {head!r}", head=head[:8]),
        remedy=tr("an unfinished download, or another kind of file under this name"),
    )
