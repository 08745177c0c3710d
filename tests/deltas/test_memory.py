"""What a merged tensor needed goes with its reader."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from merge.deltas.patches import LowRank, Merged
from merge.lazy import LazyTensor, RowReader


@dataclass(frozen=True)
class InMemory(LazyTensor):
    values: torch.Tensor

    def reader(self) -> RowReader:
        return lambda start, stop, out: out.copy_(self.values[start:stop])  # type: ignore[return-value]


def lazy(*shape: int) -> InMemory:
    return InMemory(shape, torch.float32, "memory", torch.ones(shape))


@pytest.fixture
def without_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collection")
def test_factors_go_with_the_reader_and_wait_for_no_garbage_collection() -> None:
    start, patch = lazy(300, 16), LowRank(lazy(4, 16), lazy(300, 4), 0.5)
    reader = Merged(start.shape, start.dtype, start.origin, start, ((patch,),)).reader()
    out = torch.empty(100, 16)
    reader(150, 250, out)
    assert out.eq(3).all()
    gone = weakref.ref(reader)
    del reader
    assert gone() is None
