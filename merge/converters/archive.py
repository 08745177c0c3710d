"""A ``.pth`` or ``.bin`` as another program's unpickler meets it: classes, strides, checksums."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import FormatError
from ..formats.files import InputFile, refuse_placeholder
from ..formats.torch_pickle import load_pickle
from ..formats.torch_zip import MAGIC


@dataclass(frozen=True)
class Archive:
    """The pickle of a zip archive that torch wrote, unpickled without its data.

    ``value`` holds tensors on the device ``meta``. ``classes`` are the names that the pickle asks
    for. ``unchecked`` are records with data and the CRC-32 zero, which stands for none.
    """

    path: Path
    value: Any
    classes: frozenset[str]
    unchecked: tuple[str, ...]


def is_zip(path: Path) -> bool:
    """Whether a file begins as torch's files do since torch 1.6."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def open_archive(path: Path) -> Archive:
    """Read the pickle of an archive. Raises ``FormatError`` for damage and for what runs code."""
    file = InputFile(path)
    refuse_placeholder(file)
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            pickles = [info.filename for info in records if info.filename.endswith(".pkl")]
            data = archive.read(pickles[0]) if len(pickles) == 1 else b""
    except (zipfile.BadZipFile, EOFError) as error:
        raise FormatError(
            "the file is no whole zip archive, as torch writes them since 1.6",
            file=path,
            found=error,
            remedy="fetch the file again; or load it with torch and save it once more",
        ) from None
    if not data:
        raise FormatError(
            "the archive does not hold exactly one pickle",
            file=path,
            found=", ".join(pickles) or "none",
            remedy="save the state dict alone with torch.save",
        )
    value = load_pickle(file, io.BytesIO(data)).value
    unchecked = tuple(info.filename for info in records if info.file_size and not info.CRC)
    return Archive(path, value, _classes(data), unchecked)


def _classes(data: bytes) -> frozenset[str]:
    """``module.name`` of everything that a pickle of protocol 2 or 3 imports."""
    return frozenset(
        str(argument).replace(" ", ".")
        for opcode, argument, _ in pickletools.genops(data)
        if opcode.name == "GLOBAL"
    )


def tensors_in(archive: Archive, wrapper: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors by name, inside ``wrapper`` if the mapping has that key.

    Raises ``FormatError`` for anything else in the mapping.
    """
    value = archive.value
    if wrapper is not None and isinstance(value, Mapping) and wrapper in value:
        value = value[wrapper]
    if isinstance(value, Mapping):
        odd = [name for name, tensor in value.items() if not isinstance(tensor, torch.Tensor)]
        if not odd:
            return dict(value)
    raise FormatError(
        "the file holds something beside tensors by name",
        file=archive.path,
        tensor=str(odd[0]) if isinstance(value, Mapping) else None,
        expected="a mapping of names to tensors",
        found=type(value[odd[0]] if isinstance(value, Mapping) else value).__name__,
        remedy="save the model's state dict alone with torch.save",
    )
