"""Which statistics of a merge are collected while it is written, and where they are found then."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..interruption import raise_if_interrupted
from ..layouts.decoder import VOCABULARY_TENSORS
from ..tensors.lazy import LazyTensor, block_rows, scratch
from ..tensors.patched import PatchedTensor
from ..tensors.statistics import (
    ChangeRecorder,
    ChangeState,
    ObservedTensor,
    RowRecorder,
    RowStatistics,
)
from ..tensors.threads import ComputePool, use_one_torch_thread
from .apply import WHOLE_ROWS, Step
from .factor_norms import measure_factors
from .patches import LowRank


@dataclass(frozen=True)
class MeasuredStates:
    """What the recorders of ``Measurements`` have collected, by tensor."""

    changes: Mapping[str, ChangeState]
    rows: Mapping[str, Mapping[int, RowStatistics]]


@dataclass(frozen=True)
class Measurements:
    """The recorders of a merge, by tensor: ``changes`` of sums, ``rows`` of vocabularies and of
    tensors that were taken whole. ``tensors`` are the ones whose reading fills them.
    """

    tensors: Mapping[str, LazyTensor]
    changes: Mapping[str, ChangeRecorder]
    rows: Mapping[str, RowRecorder] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, LazyTensor],
        changes: Mapping[str, ChangeRecorder],
        rows: Mapping[str, RowRecorder],
    ) -> Measurements:
        """Those of ``tensors`` that have a recorder, with their recorders."""
        kept = {name: one for name, one in tensors.items() if name in changes or name in rows}
        return cls(kept, changes, rows)

    def take_states(self) -> MeasuredStates:
        """What has been collected in this process since the last call, which pickle can hold."""
        return MeasuredStates(
            {name: one.take_state() for name, one in self.changes.items() if one.blocks},
            {name: one.take_state() for name, one in self.rows.items() if one.blocks},
        )

    def add_states(self, states: MeasuredStates) -> None:
        """Add what a process has collected that computed other tensors, or other blocks."""
        for name, state in states.changes.items():
            self.changes[name].add_state(state)
        for name, blocks in states.rows.items():
            self.rows[name].add_state(blocks)

    def list_incomplete(self) -> list[str]:
        """Names of tensors that were not computed here, as those that an earlier run wrote."""
        recorders = (self.changes, self.rows)
        return [
            name
            for name in self.tensors
            if any(not kind[name].is_complete for kind in recorders if name in kind)
        ]

    def compute_missing(
        self, num_workers: int = 1, on_bytes: Callable[[int], object] = lambda _: None
    ) -> None:
        """Read what has not been computed here, in a pass of its own that writes nothing."""
        names = self.list_incomplete()
        if not names:
            return
        with ComputePool(num_workers) as pool, use_one_torch_thread():
            for _ in pool.map(lambda name: _read_through(self.tensors[name], on_bytes), names):
                raise_if_interrupted()


def _read_through(tensor: LazyTensor, on_bytes: Callable[[int], object]) -> None:
    read, step = tensor.reader(), block_rows(tensor.shape)
    for start in range(0, tensor.rows, step):
        raise_if_interrupted()
        stop = min(start + step, tensor.rows)
        read(start, stop, scratch("measured", (stop - start, *tensor.shape[1:]), tensor.dtype))
        on_bytes((stop - start) * tensor.row_bytes)


def list_replaced(steps: Mapping[str, Sequence[Step]]) -> frozenset[str]:
    """Names of tensors that an adapter has replaced, or cut."""
    return frozenset(
        name for name, done in steps.items() if any(step.action in WHOLE_ROWS for step in done)
    )


def record_changes(
    tensors: Mapping[str, LazyTensor],
) -> tuple[dict[str, LazyTensor], dict[str, ChangeRecorder]]:
    """The same tensors, of which those that are sums record their change as they are read."""
    recorders = {
        name: _make_recorder(tensor)
        for name, tensor in tensors.items()
        if isinstance(tensor, PatchedTensor) and tensor.patches_by_adapter
    }
    recording = {
        name: replace(tensor, recorder=recorders[name])
        if isinstance(tensor, PatchedTensor) and name in recorders
        else tensor
        for name, tensor in tensors.items()
    }
    return recording, recorders


def _make_recorder(tensor: PatchedTensor) -> ChangeRecorder:
    stages = [
        [patch for patch in stage if isinstance(patch, LowRank)]
        for stage in tensor.patches_by_adapter
    ]
    is_low_rank = list(map(len, stages)) == list(map(len, tensor.patches_by_adapter))
    measure = partial(measure_factors, stages) if is_low_rank else None
    return ChangeRecorder(tensor.shape, measure)


def record_rows(
    tensors: Mapping[str, LazyTensor], base: Mapping[str, LazyTensor], replaced: Container[str]
) -> tuple[dict[str, LazyTensor], dict[str, RowRecorder]]:
    """The same tensors, of which vocabularies and those ``replaced`` record their rows.

    What has been replaced is compared with the tensor of that name in ``base``.
    """
    recording, recorders = dict(tensors), {}
    for name, tensor in tensors.items():
        if not tensor.shape or not (name in VOCABULARY_TENSORS or name in replaced):
            continue
        before = _find_before(name, tensor, base) if name in replaced else None
        one = recorders[name] = RowRecorder(tensor.shape, before)
        recording[name] = ObservedTensor(tensor.shape, tensor.dtype, tensor.origin, tensor, one)
    return recording, recorders


def _find_before(
    name: str, tensor: LazyTensor, base: Mapping[str, LazyTensor]
) -> LazyTensor | None:
    """What a replaced tensor is compared with: the base's, if it can be read without a digest.

    Else, as a sum of base and delta, a digest would be made of what the merge itself does not read.
    """
    before = base.get(name)
    if before is None or before.shape[1:] != tensor.shape[1:]:
        return None
    plain = before.without_digest()
    return None if plain is before else plain
