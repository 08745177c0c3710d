"""How a layout says where the parts of a tensor go, whatever the container."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


@dataclass(frozen=True)
class Stream:
    """Files that are written side by side from the same tensors, and independently of all others.

    ``tensors`` are numbers in the plan, in the order in which they are written. It is one file,
    but for Meta's, over which tensors are split.
    """

    tensors: tuple[int, ...]
    files: tuple[str, ...]


def group_streams(placed: Sequence[PlacedTensor]) -> tuple[Stream, ...]:
    """Divide tensors into streams, in the order of their first tensors."""
    contents = [tuple(dict.fromkeys(piece.file for piece in item.pieces)) for item in placed]
    return tuple(
        Stream(tuple(numbers), tuple(dict.fromkeys(f for n in numbers for f in contents[n])))
        for numbers in group_by_files(contents)
    )


def group_by_files(contents: Sequence[Collection[str]]) -> list[list[int]]:
    """The numbers of those that have a file in common, directly or by way of others.

    >>> group_by_files([["a"], ["b"], ["a"], ["c", "d"], ["d"]])
    [[0, 2], [1], [3, 4]]
    """
    groups: dict[str, list[int]] = {}
    for number, names in enumerate(contents):
        joined = list({id(group): group for name in names if (group := groups.get(name))}.values())
        largest = max(joined, key=len, default=[])
        for group in joined:
            if group is not largest:
                largest += group
                groups |= {name: largest for name, other in groups.items() if other is group}
        largest.append(number)
        groups |= dict.fromkeys(names, largest)
    unique = {id(group): sorted(group) for group in groups.values()}
    return sorted(unique.values())
