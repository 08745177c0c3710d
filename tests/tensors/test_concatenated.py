"""Matrices one after the other: torch.cat is asked the same, and few parts are open at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from merge.tensors.concatenated import concatenate
from merge.tensors.lazy import LazyTensor, RowReader


@dataclass(frozen=True)
class _Part(LazyTensor):
    """Rows of ``values``; ``opened`` counts its readers."""

    values: torch.Tensor
    opened: list[int] = field(default_factory=list)

    def reader(self) -> RowReader:
        self.opened.append(1)

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            out.copy_(self.values[start:stop])

        return fill


def _make_parts(axis: int) -> list[_Part]:
    torch.manual_seed(0)
    shapes = [(rows, 4) if axis == 0 else (4, rows) for rows in (3, 1, 7)]
    return [_Part(shape, torch.float32, "part", torch.randn(shape)) for shape in shapes]


@pytest.mark.parametrize("axis", [0, 1])
def test_any_rows_are_those_of_torch(axis: int) -> None:
    parts = _make_parts(axis)
    whole = torch.cat([part.values for part in parts], axis)
    joined = concatenate(parts, axis)
    assert joined.shape == whole.shape
    for start in range(joined.rows):
        for stop in range(start + 1, joined.rows + 1):
            assert torch.equal(joined.read(start, stop), whole[start:stop])


def test_a_part_is_opened_with_its_first_row_and_once() -> None:
    parts = _make_parts(0)
    joined = concatenate(parts, 0)
    read, opened = joined.reader(), []
    for row in range(joined.rows):
        read(row, row + 1, torch.empty(1, 4))
        opened.append([len(part.opened) for part in parts])
    assert opened == [[1, 0, 0]] * 3 + [[1, 1, 0]] + [[1, 1, 1]] * 7
