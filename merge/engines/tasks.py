"""A plan in tasks that can run anywhere and in any order: whole files, or parts of large ones.

Files that share a tensor, as Meta's do, are written by one task, so that the tensor is computed
once. Where the files of a task are larger than a task may be, several tasks write ranges of their
tensors into part files, and another one for each file joins these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats import TensorInfo, open_container
from ..layouts.placement import Piece, PlacedTensor, Stream
from ..output.attempts import get_part_name
from ..plan.placement import Plan
from ..storage.offload import Offload
from ..tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Task:
    """The ``tensors`` of these numbers in the plan, which go into ``files``.

    They are written into part files, of which this is ``part``, unless it is None: then they are
    all tensors of the files.
    """

    files: tuple[str, ...]
    tensors: tuple[int, ...]
    part: int | None = None

    def get_name(self, file: str) -> str:
        """What the task writes in place of ``file``."""
        return file if self.part is None else get_part_name(file, self.part)


def divide(plan: Plan, stream: Stream, task_bytes: int) -> list[Task]:
    """The tasks of a stream: one, or parts of at most ``task_bytes``, but of a tensor at least."""
    parts: list[list[int]] = [[]]
    size = 0
    for number in stream.tensors:
        nbytes = _count_bytes(plan.placed[number])
        if size and size + nbytes > task_bytes:
            parts.append([])
            size = 0
        parts[-1].append(number)
        size += nbytes
    if len(parts) == 1:
        return [Task(stream.files, stream.tensors)]
    return [Task(stream.files, tuple(numbers), part) for part, numbers in enumerate(parts)]


def count_part_bytes(plan: Plan, task_bytes: int) -> int:
    """Bytes of all part files together, which stand beside the files that are made of them."""
    return sum(
        _count_bytes(plan.placed[number])
        for stream in plan.streams
        for task in divide(plan, stream, task_bytes)
        if task.part is not None
        for number in task.tensors
    )


def _count_bytes(item: PlacedTensor) -> int:
    tensor = item.tensor
    infos = (TensorInfo(one.name, one.shape(tensor.shape), tensor.dtype) for one in item.pieces)
    return sum(info.nbytes for info in infos)


def select(plan: Plan, task: Task) -> Plan:
    """The plan of one task alone."""
    placed = []
    for item in (plan.placed[number] for number in task.tensors):
        pieces = [replace(piece, file=task.get_name(piece.file)) for piece in item.pieces]
        placed.append(replace(item, pieces=tuple(pieces)))
    headers = {}
    if task.part is None:
        headers = {file: plan.headers[file] for file in task.files if file in plan.headers}
    return replace(plan, placed=tuple(placed), headers=headers, documents={})


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
