"""Shared tensors: rows that several readers of a thread want are read once, and only in a block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from merge.tensors.lazy import Checkpoint, LazyTensor, RowReader
from merge.tensors.shared import read_once, share


@dataclass(frozen=True)
class Counting(LazyTensor):
    """The numbers of its rows; it notes which rows it was asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def reader(self) -> RowReader:
        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            self.asked.append((start, stop))
            out.copy_(torch.arange(start, stop)[:, None].expand_as(out))

        return fill


def make_shared(*names: str) -> tuple[dict[str, Counting], dict[str, LazyTensor]]:
    counting = {name: Counting((100, 3), torch.float32, name) for name in names}
    return counting, dict(share(Checkpoint(counting, {})).tensors)


def read_rows(tensor: LazyTensor, start: int, stop: int) -> list[float]:
    return [row[2].item() for row in tensor.read(start, stop)]


def test_rows_of_a_block_are_read_once_for_all_readers() -> None:
    counting, shared = make_shared("one", "other")
    with read_once(20, 40):
        for start, stop in ((20, 40), (20, 40), (25, 30)):
            for tensor in shared.values():
                assert read_rows(tensor, start, stop) == list(range(start, stop))
    assert {name: tensor.asked for name, tensor in counting.items()} == {
        "one": [(20, 40)],
        "other": [(20, 40)],
    }


def test_part_of_the_rows_brings_all_of_them() -> None:
    counting, shared = make_shared("one")
    with read_once(20, 40):
        assert read_rows(shared["one"], 30, 35) == list(range(30, 35))
        assert read_rows(shared["one"], 20, 40) == list(range(20, 40))
    assert counting["one"].asked == [(20, 40)]


def test_block_that_goes_beyond_the_tensor_ends_with_it() -> None:
    counting, shared = make_shared("one")
    with read_once(90, 120):
        for _ in range(2):
            assert read_rows(shared["one"], 90, 100) == list(range(90, 100))
    assert counting["one"].asked == [(90, 100)]


def test_other_rows_and_later_readers_are_read_as_they_ask() -> None:
    counting, shared = make_shared("one")
    with read_once(20, 40):
        assert read_rows(shared["one"], 10, 30) == list(range(10, 30))
        assert read_rows(shared["one"], 20, 40) == list(range(20, 40))
    with read_once(20, 40):
        assert read_rows(shared["one"], 20, 40) == list(range(20, 40))
    assert read_rows(shared["one"], 20, 40) == list(range(20, 40))
    assert counting["one"].asked == [(10, 30), (20, 40), (20, 40), (20, 40)]
