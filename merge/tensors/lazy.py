"""Tensors that have not been read yet, and the checkpoint they make up.

``LazyTensor.reader()`` is the only way data moves. It returns a function ``(start, stop, out)``
that fills ``out`` with these rows of dimension 0. The memory is the caller's, who uses it again;
that is how a budget is kept. A reader may hold what it needs to answer quickly (the factors of a
LoRA, say) and drops it with itself: memory follows the readers that are open, not the model.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..messages import tr

RowReader = Callable[[int, int, torch.Tensor], None]

# A block of the arithmetic is about this many elements: its float32 copy stays in a core's cache.
_BLOCK_ELEMENTS = 1 << 19
_MIN_BLOCK_ROWS = 64


@dataclass(frozen=True)
class LazyTensor(ABC):
    """A tensor known by shape, dtype and where it comes from.

    ``origin`` grows as steps wrap the tensor, so that an error can name every step.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: str

    @abstractmethod
    def reader(self) -> RowReader:
        """Return a function that fills a contiguous ``(stop - start, *shape[1:])`` of ``dtype``.

        The function may be called from several threads at once.
        """

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows into new memory. For small tensors and small ranges."""
        stop = self.rows if stop is None else stop
        out = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        self.reader()(start, stop, out)
        return out

    def without_digest(self) -> LazyTensor:
        """The same tensor for readers that do not begin at its first row."""
        return self

    @property
    def rejects_nonfinite(self) -> bool:
        """Whether reading it refuses NaN and Inf."""
        return False

    def allowing_nonfinite(self) -> LazyTensor:
        """The same tensor, which takes such values as they are."""
        return self

    def unchanged_source(self) -> LazyTensor:
        """The tensor that this one hands on as it is: itself, unless it changes nothing."""
        return self

    def transposed(self) -> LazyTensor:
        """The matrix with rows and columns exchanged, still unread."""
        return _Transposed(
            self.shape[::-1], self.dtype, tr("{origin}, transposed", origin=self.origin), self
        )

    @property
    def path(self) -> Path | None:
        """The file that holds the tensor, where it is in one file as it is."""
        return None

    @property
    def rows(self) -> int:
        """Size of dimension 0; 1 for a scalar, which is read as one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class HeldTensor(LazyTensor):
    """A small tensor that is in memory already."""

    values: torch.Tensor = field(compare=False, repr=False)

    @classmethod
    def of(cls, values: torch.Tensor, origin: str) -> HeldTensor:
        """``values``, which are not copied."""
        return cls(tuple(values.shape), values.dtype, origin, values)

    def reader(self) -> RowReader:
        values = self.values

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            out.copy_(values[start:stop])

        return fill


@dataclass(frozen=True)
class _Transposed(LazyTensor):
    """A matrix by its columns; its reader holds all of ``base``, which must be small."""

    base: LazyTensor

    def reader(self) -> RowReader:
        columns = self.base.read().t()

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            out.copy_(columns[start:stop])

        return fill


@dataclass(frozen=True)
class _RowPrefix(LazyTensor):
    """As many rows of ``base`` as ``shape`` says, from the first on."""

    base: LazyTensor

    def without_digest(self) -> LazyTensor:
        return _RowPrefix(self.shape, self.dtype, self.origin, self.base.without_digest())

    def reader(self) -> RowReader:
        return self.base.reader()


@dataclass(frozen=True)
class _RowsAppended(LazyTensor):
    """All rows of ``head``, then those of ``tail`` that come after as many."""

    head: LazyTensor
    tail: LazyTensor

    def reader(self) -> RowReader:
        parts = ((self.head, 0, self.head.rows), (self.tail, self.head.rows, self.rows))
        readers = [(tensor, tensor.reader(), first, last) for tensor, first, last in parts]

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            for tensor, read, first, last in readers:
                begin, end = max(start, first), min(stop, last)
                if begin < end:
                    rows = scratch("rows", (end - begin, *self.shape[1:]), tensor.dtype)
                    read(begin, end, rows)
                    out[begin - start : end - start].copy_(rows)

        return fill


def take_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    """The first ``rows`` rows of a tensor."""
    return _RowPrefix((rows, *tensor.shape[1:]), tensor.dtype, tensor.origin, tensor)


def append_rows(head: LazyTensor, tail: LazyTensor) -> LazyTensor:
    """``head`` made as long as ``tail`` with the rows of ``tail``, in a dtype that holds both."""
    dtype = torch.promote_types(head.dtype, tail.dtype)
    origin = f"{head.origin}, then {tail.origin}"
    return _RowsAppended(tail.shape, dtype, origin, head, tail)


@dataclass(frozen=True)
class Checkpoint:
    """An ordered mapping of Hugging Face names to tensors, with the model's ``config.json``.

    ``files`` hold the tensors; ``dropped`` names those in them that are left out. ``notes`` tell
    what the configuration assumes, for layouts that do not say everything. ``extra`` are tensors
    of models that are a LLaMA with more beside it. ``rotary_factors`` are those by which a GGUF
    file divides rotary frequencies, where it says them as a tensor.
    """

    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: Mapping[str, LazyTensor] = field(default_factory=dict)
    rotary_factors: LazyTensor | None = None


class _Scratch(threading.local):
    """Memory that a thread uses again and again; it goes when the thread ends."""

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}


_scratch = _Scratch()


def scratch(purpose: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory of this thread's own, the same at the next call for the same ``purpose``.

    Large blocks that come and go by the thousand would grow the process far beyond what they hold
    at any time.
    """
    nbytes = prod(shape) * dtype.itemsize
    buffer = _scratch.buffers.get(purpose)
    if buffer is None or len(buffer) < nbytes:
        buffer = _scratch.buffers[purpose] = torch.empty(nbytes, dtype=torch.uint8)
    return buffer[:nbytes].view(dtype).view(shape)


def block_rows(shape: tuple[int, ...]) -> int:
    """Rows of one block of arithmetic on a tensor of ``shape``.

    Depends on the shape alone, so the same bytes come out for every memory budget and number of
    workers: a matrix product may round differently when its rows are grouped differently.

    >>> block_rows((4096, 4096)), block_rows((32000, 2048)), block_rows((4096, 11008))
    (128, 256, 64)
    """
    per_row = max(1, prod(shape[1:]))
    fitting = max(_MIN_BLOCK_ROWS, _BLOCK_ELEMENTS // per_row)
    return 1 << (fitting.bit_length() - 1)


def have_equal_values(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors hold the same bits; they are read up to the first block that differs."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    step = block_rows(one.shape)
    readers = one.without_digest().reader(), other.without_digest().reader()
    blocks = [torch.empty((step, *one.shape[1:]), dtype=one.dtype) for _ in readers]
    for start in range(0, one.rows, step):
        count = min(step, one.rows - start)
        for read, block in zip(readers, blocks, strict=True):
            read(start, start + count, block[:count])
        ours, theirs = (block[:count].view(torch.uint8) for block in blocks)
        if not torch.equal(ours, theirs):
            return False
    return True


def get_dtype_name(dtype: torch.dtype) -> str:
    """``float16`` for ``torch.float16``, as configurations spell it."""
    return str(dtype).removeprefix("torch.")


def parse_dtype(name: str) -> torch.dtype | None:
    """``torch.float16`` for ``float16``; None for ``auto``, which keeps what is there."""
    return None if name == "auto" else getattr(torch, name)
