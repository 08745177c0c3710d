"""Tensors to write with torch or safetensors, and what reading them must give."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import strategies as st

from merge.formats import ContainerWriter, TensorInfo
from merge.tensors.lazy import LazyTensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
ONE_BYTE_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Distinct values wherever the dtype has enough of them."""
    count = int(torch.Size(shape).numel())
    return (torch.arange(count) % 251).view(shape).to(dtype)


@st.composite
def any_tensor(draw: st.DrawFn, most_elements: int = 7) -> torch.Tensor:
    """One to three dimensions of so many elements at most, of a dtype of one to eight bytes."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int64)
    sizes = draw(st.lists(st.integers(1, most_elements), min_size=1, max_size=3))
    return values(*sizes, dtype=draw(st.sampled_from(dtypes)))


@st.composite
def any_span(draw: st.DrawFn, rows: int) -> tuple[int, int]:
    """The first of some rows, and the one after them; none perhaps."""
    start = draw(st.integers(0, rows))
    return start, draw(st.integers(start, rows))


def saved(path: Path, value: object, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


class Opens:
    """Pickles to a call that makes a file, as an attack would do worse."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def require_equal(lazy: LazyTensor, tensor: torch.Tensor) -> None:
    """Same shape, dtype and bits, read whole."""
    assert (lazy.shape, lazy.dtype) == (tuple(tensor.shape), tensor.dtype)
    bits = lazy.read().reshape(tensor.shape).contiguous().view(-1).view(torch.uint8)
    assert torch.equal(bits, tensor.detach().contiguous().view(-1).view(torch.uint8))


def require_same(tensors: dict[str, LazyTensor], state: dict[str, torch.Tensor]) -> None:
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        require_equal(tensors[name], tensor)


INFOS = (
    TensorInfo("a.weight", (5, 3), torch.float16),
    TensorInfo("b.weight", (70, 2), torch.bfloat16),
    TensorInfo("c", (1,), torch.float32),
    TensorInfo("ein Name, 中文", (2, 3, 4), torch.float32),
)
"""What the writers are given."""


def place_tensors(writer: ContainerWriter, piece: int = 1 << 20) -> None:
    """Hand a writer its tensors, ``piece`` bytes at a time, and close it."""
    for info in writer.tensors:
        flat = values(*info.shape, dtype=info.dtype).view(-1).view(torch.uint8).numpy()
        for start in range(0, info.nbytes, piece):
            writer.write(memoryview(flat[start : start + piece]))
    writer.close()
