"""What all containers share: a writer that takes named tensors' bytes one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch


@dataclass(frozen=True)
class TensorInfo:
    """What a container's header says of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.elements * self.dtype.itemsize


class Sink(Protocol):
    """Takes bytes one after the other."""

    def write(self, data: memoryview, /) -> object:
        """Append ``data``."""


class ContainerWriter(ABC):
    """Writes the given tensors into a stream, in their order, as their bytes come.

    A subclass writes its header when it is made; ``write`` then takes data that never crosses from
    one tensor into the next; ``close`` ends the container (the stream stays open).
    """

    def __init__(self, tensors: Sequence[TensorInfo]) -> None:
        self.tensors = tuple(tensors)
        self._sinks: Iterator[Sink] | None = None
        self._sink: Sink | None = None
        self._current = -1
        self._left = 0

    @abstractmethod
    def _iter_sinks(self) -> Iterator[Sink]:
        """Yield, tensor by tensor, what its bytes are to be written to."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what follows the last tensor."""

    def write(self, data: memoryview) -> None:
        """Append ``data`` to the tensor whose turn it is."""
        self._advance()
        assert len(data) <= self._left, "data crosses from one tensor into the next"
        assert self._sink is not None
        self._sink.write(data)
        self._left -= len(data)
        self._advance()

    @property
    def tensor_crcs(self) -> tuple[int, ...]:
        """What ``skip`` needs: the CRC-32 of each tensor that has been written whole, or 0.

        The last tensor of all is not among them until ``close``.
        """
        return (0,) * self._current

    def skip(self, tensor_crcs: Sequence[int]) -> None:
        """Skip the first tensors, whose data is in the stream already.

        All else of the container up to there is written once more.
        """
        for crc in tensor_crcs:
            self._begin_next()
            self._skip_current(crc)
        self._advance()

    def _skip_current(self, crc: int) -> None:
        """Take the current tensor as written; ``crc`` is its CRC-32."""
        self._left = 0

    @property
    def is_complete(self) -> bool:
        """Whether the last tensor has been written whole."""
        return self._left == 0 and self._current == len(self.tensors) - 1

    def close(self) -> None:
        """End the container. Every tensor must have been written."""
        assert self._left == 0, "the last tensor is not whole"
        assert self._current == len(self.tensors) - 1, "tensors are missing"
        if self._sinks is not None:
            assert next(self._sinks, None) is None
        self._finish()

    def _advance(self) -> None:
        """Begin the next tensor as soon as one is whole, so that all that belongs to it is out."""
        while self._left == 0 and self._current < len(self.tensors) - 1:
            self._begin_next()

    def _begin_next(self) -> None:
        if self._sinks is None:
            self._sinks = self._iter_sinks()
        self._sink = next(self._sinks)
        self._current += 1
        self._left = self.tensors[self._current].nbytes
