"""A ``.pth`` or ``.bin`` as another program's unpickler meets it: classes, strides, checksums."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..formats.torch.names import SavedTensor
from ..formats.torch.pickle import load_pickle
from ..formats.torch.pickle_machine import MOST_BYTES
from ..formats.torch.zip import MAGIC
from ..storage.files import InputFile, refuse_placeholder
from ..untrusted.safe_zip import open_zip, pieces


@dataclass(frozen=True)
class Archive:
    """The pickle of a zip archive that torch wrote, as it describes the data.

    ``classes`` are the names that the pickle asks
    for. ``unchecked`` are records with data and the CRC-32 zero, which stands for none.
    """

    path: Path
    value: Any
    classes: frozenset[str]
    unchecked: tuple[str, ...]


def begins_as_zip(path: Path) -> bool:
    """Whether a file begins as torch's files do since torch 1.6."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def open_archive(path: Path) -> Archive:
    """Read the pickle of an archive. Raises ``FormatError`` for damage and for what runs code."""
    file = InputFile(path)
    refuse_placeholder(file)
    if not begins_as_zip(path):
        raise FormatError(
            "the file is no zip archive, as torch writes them since 1.6",
            file=path,
            remedy="load it with torch and save it once more",
        )
    with open_zip(path) as (archive, records):
        pickles = [info for name, info in records.items() if name.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_BYTES:
            raise FormatError(
                "the archive does not hold exactly one pickle of names",
                file=path,
                found=", ".join(info.filename for info in pickles) or "none",
                remedy="save the state dict alone with torch.save",
            )
        data = b"".join(pieces(path, archive, pickles[0]))
    value = load_pickle(file, io.BytesIO(data)).value
    unchecked = tuple(i.filename for i in records.values() if i.file_size and not i.CRC)
    return Archive(path, value, _classes(data), unchecked)


def _classes(data: bytes) -> frozenset[str]:
    """``module.name`` of everything that a pickle of protocol 2 or 3 imports."""
    return frozenset(
        str(argument).replace(" ", ".")
        for opcode, argument, _ in pickletools.genops(data)
        if opcode.name == "GLOBAL"
    )


def tensors_in(archive: Archive, wrapper: str | None = None) -> dict[str, SavedTensor]:
    """The tensors by name, inside ``wrapper`` if the mapping has that key.

    Raises ``FormatError`` for anything else in the mapping.
    """
    value = archive.value
    if wrapper is not None and isinstance(value, Mapping) and wrapper in value:
        value = value[wrapper]
    if isinstance(value, Mapping):
        odd = [name for name, tensor in value.items() if not isinstance(tensor, SavedTensor)]
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
