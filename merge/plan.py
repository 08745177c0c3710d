"""What will be written: each tensor's pieces, each file's contents, what it costs.

A plan is a value, made from headers alone. It can be printed, tested, and handed to the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .formats.container import TensorInfo
from .layouts.pour import Poured, files

# Room for containers' headers and for the manifest, beside the tensors themselves.
_ALLOWANCE = 1 << 20


@dataclass(frozen=True)
class Plan:
    """Tensors to compute and the files to pour them into, beside small files given as bytes."""

    poured: tuple[Poured, ...]
    documents: Mapping[str, bytes]

    @cached_property
    def files(self) -> dict[str, list[TensorInfo]]:
        """Contents of each weight file, in the order in which they are written."""
        return files(list(self.poured))

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors in all files."""
        return sum(info.nbytes for infos in self.files.values() for info in infos)

    @property
    def disk_bytes(self) -> int:
        """Room that the output needs at most."""
        documents = sum(map(len, self.documents.values()))
        return self.tensor_bytes + documents + _ALLOWANCE * (1 + len(self.files))
