"""A plan in tasks that can run anywhere and in any order: whole files, or parts of large ones.

Files that share a tensor, as Meta's do, are written by one task, so that the tensor is computed
once. Where the files of a task are larger than a task may be, several tasks write ranges of their
tensors into part files, and another one for each file joins these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..formats import TensorInfo, open_container
from ..layouts.placement import Piece, PlacedTensor
from ..plan.placement import Plan
from ..storage.offload import Offload
from ..tensors.lazy import LazyTensor

# Part files are containers of this kind, whatever the result is.
_PART_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Task:
    """The tensors from ``first`` to ``stop`` among those of ``files``.

    They are written into part files, of which this is ``part``, unless it is None: then they are
    all tensors of the files. ``nbytes`` counts them.
    """

    files: tuple[str, ...]
    first: int
    stop: int
    nbytes: int
    part: int | None = None

    def get_name(self, file: str) -> str:
        """What the task writes in place of ``file``."""
        return file if self.part is None else get_part_name(file, self.part)

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that the task writes."""
        return tuple(self.get_name(file) for file in self.files)


def get_part_name(file: str, part: int) -> str:
    """The name of a part file.

    >>> get_part_name("model.gguf", 2)
    'model.gguf.part-0002.safetensors'
    """
    return f"{file}.part-{part:04}{_PART_SUFFIX}"


def divide(plan: Plan, task_bytes: int, done: Sequence[str] = ()) -> list[list[Task]]:
    """The tasks of each group of files that share tensors; one task, or several parts.

    Groups whose files are all ``done`` are left out.
    """
    return [
        _divide_group(files, _find_items(plan, files), task_bytes)
        for files in _group_files(plan)
        if not set(files) <= set(done)
    ]


def _group_files(plan: Plan) -> list[tuple[str, ...]]:
    """Files that are connected by tensors in several of them."""
    groups: list[set[str]] = []
    for item in plan.placed:
        files = {piece.file for piece in item.pieces}
        joined = files.union(*(group for group in groups if group & files))
        groups = [group for group in groups if not group & files] + [joined]
    order = list(plan.files)
    return [tuple(name for name in order if name in group) for group in groups]


def _find_items(plan: Plan, files: Sequence[str]) -> list[PlacedTensor]:
    """The tensors of these files, in the plan's order."""
    own = set(files)
    return [item for item in plan.placed if any(piece.file in own for piece in item.pieces)]


def _divide_group(
    files: tuple[str, ...], items: Sequence[PlacedTensor], task_bytes: int
) -> list[Task]:
    """Ranges of at most ``task_bytes``, but of one tensor at least."""
    bounds, size = [0], 0
    sizes = [_count_bytes(item) for item in items]
    for number, nbytes in enumerate(sizes):
        if size and size + nbytes > task_bytes:
            bounds.append(number)
            size = 0
        size += nbytes
    bounds.append(len(items))
    several = len(bounds) > 2
    return [
        Task(files, first, stop, sum(sizes[first:stop]), part if several else None)
        for part, (first, stop) in enumerate(pairwise(bounds))
    ]


def _count_bytes(item: PlacedTensor) -> int:
    tensor = item.tensor
    infos = (TensorInfo(one.name, one.shape(tensor.shape), tensor.dtype) for one in item.pieces)
    return sum(info.nbytes for info in infos)


def select(plan: Plan, task: Task) -> Plan:
    """The plan of one task alone."""
    placed = tuple(_iter_placed(plan, task))
    headers = {}
    if task.part is None:
        headers = {file: plan.headers[file] for file in task.files if file in plan.headers}
    return replace(plan, placed=placed, headers=headers, documents={})


def _iter_placed(plan: Plan, task: Task) -> Iterator[PlacedTensor]:
    for item in _find_items(plan, task.files)[task.first : task.stop]:
        pieces = [replace(piece, file=task.get_name(piece.file)) for piece in item.pieces]
        yield replace(item, pieces=tuple(pieces))


def plan_joining(plan: Plan, file: str, parts: Sequence[Path], offload: Offload) -> Plan:
    """The plan of one file whose tensors are in part files already."""
    tensors: dict[str, LazyTensor] = {}
    for path in parts:
        tensors |= open_container(path, offload)
    placed = tuple(
        PlacedTensor(info.name, tensors[info.name], (Piece(file, info.name, None, 0, 0),))
        for info in plan.files[file]
    )
    headers = {file: plan.headers[file]} if file in plan.headers else {}
    return replace(plan, placed=placed, headers=headers, documents={}, tensors={}, checked={})
