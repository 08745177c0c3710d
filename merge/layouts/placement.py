"""How a layout says where the parts of a tensor go, whatever the container."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats.container import TensorInfo
from ..tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Piece:
    """The part of a tensor that goes into one file: all of it, or a range along ``axis``."""

    file: str
    name: str
    axis: int | None
    start: int
    stop: int

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of this part of a tensor of shape ``whole``."""
        if self.axis is None:
            return whole
        return (*whole[: self.axis], self.stop - self.start, *whole[self.axis + 1 :])


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor under its Hugging Face name, in the target's order of rows, and its pieces."""

    name: str
    tensor: LazyTensor
    pieces: tuple[Piece, ...]


def files(placed: list[PlacedTensor]) -> dict[str, list[TensorInfo]]:
    """What each file will hold, in the order in which it is written."""
    contents: dict[str, list[TensorInfo]] = {}
    for item in placed:
        for piece in item.pieces:
            info = TensorInfo(piece.name, piece.shape(item.tensor.shape), item.tensor.dtype)
            contents.setdefault(piece.file, []).append(info)
    return contents
