"""Statistics of how a tensor changes, collected block by block while it is computed.

Blocks come in any order and from several threads; one that is computed twice counts once. What has
been collected are plain values, so that it can come from another process, and sums over blocks are
made in the order of the blocks, so that they do not depend on the order of their arrival.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock

import torch

from .lazy import LazyTensor, RowReader, block_rows, scratch

# Of larger blocks, the rounding is measured on every eighth row: all rows would cost ten percent of
# the time of a merge, and the errors of rounding are alike everywhere.
_WHOLE_ELEMENTS = 1 << 16
_EVERY = 8


@dataclass(frozen=True)
class BlockStatistics:
    """Sums of squares over a block: of the tensor ``before``, of all ``change``, of what rounding
    ``lost``, and of the change by each stage where blocks are asked for it.

    ``largest`` is the largest magnitude of the rounded values, None for dtypes without a use of it.
    """

    before: float
    change: float
    lost: float
    largest: float | None
    stages: tuple[float, ...] = ()


@dataclass(frozen=True)
class FactorStatistics:
    """What the factors of low-rank changes tell without their product.

    ``stages`` and ``change`` are sums of squares, as in ``BlockStatistics``; ``ranks`` are
    effective ranks of each stage's change, and ``rank`` that of all together.
    """

    stages: tuple[float, ...]
    change: float
    ranks: tuple[float, ...]
    rank: float


@dataclass(frozen=True)
class ChangeState:
    """What a ``ChangeRecorder`` has collected: blocks by their first row."""

    blocks: Mapping[int, BlockStatistics]
    factors: FactorStatistics | None


class ChangeRecorder:
    """Collects the statistics of one tensor of ``shape``.

    With ``measure_factors`` the change is not taken from blocks: that function is called once, by
    the thread that computes the first block.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        measure_factors: Callable[[], FactorStatistics] | None = None,
    ) -> None:
        self._starts = range(0, shape[0] if shape else 1, block_rows(shape))
        self._measure_factors = measure_factors
        self._lock = Lock()
        self.blocks: dict[int, BlockStatistics] = {}
        self.factors: FactorStatistics | None = None

    @property
    def by_blocks(self) -> bool:
        """Whether the change is measured on blocks."""
        return self._measure_factors is None

    @property
    def is_complete(self) -> bool:
        """Whether every block has been seen."""
        return len(self.blocks) == len(self._starts) and (
            self.by_blocks or self.factors is not None
        )

    def observe(self, block: torch.Tensor, begin: int) -> BlockObserver:
        """Begin with a float32 block as it is before any change; its first row is ``begin``."""
        if begin == 0 and self._measure_factors is not None:
            with self._lock:
                self.factors = self.factors or self._measure_factors()
        return BlockObserver(self, block, begin)

    def sum_up(self) -> BlockStatistics:
        """The statistics of the whole tensor."""
        blocks = [self.blocks[begin] for begin in sorted(self.blocks)]
        magnitudes = [block.largest for block in blocks if block.largest is not None]
        change = math.fsum(block.change for block in blocks)
        stages = tuple(map(math.fsum, zip(*(block.stages for block in blocks), strict=True)))
        if self.factors is not None:
            change, stages = self.factors.change, self.factors.stages
        return BlockStatistics(
            math.fsum(block.before for block in blocks),
            change,
            math.fsum(block.lost for block in blocks),
            max(magnitudes, default=None),
            stages,
        )

    def take_state(self) -> ChangeState:
        """What has been collected since the last call; the recorder is as new then."""
        taken = ChangeState(self.blocks, self.factors)
        self.blocks, self.factors = {}, None
        return taken

    def add_state(self, state: ChangeState) -> None:
        """Add what another recorder of the same tensor has collected."""
        self.blocks |= state.blocks
        self.factors = state.factors or self.factors


class BlockObserver:
    """Follows one block from what it was to what is written."""

    def __init__(self, recorder: ChangeRecorder, block: torch.Tensor, begin: int) -> None:
        self._recorder, self._begin = recorder, begin
        self._before = sum_squares(block)
        self._stages: list[float] = []
        self._lost = 0.0
        self._rounded = False
        if recorder.by_blocks:
            self._start = scratch("block before", tuple(block.shape), torch.float32).copy_(block)
            self._stage = scratch("stage before", tuple(block.shape), torch.float32).copy_(block)

    def end_stage(self, block: torch.Tensor) -> None:
        """Note what one adapter's patches have done."""
        if self._recorder.by_blocks:
            self._stages.append(sum_squares(self._stage.sub_(block)))
            self._stage.copy_(block)

    def add_rounding(self, block: torch.Tensor, rounded: torch.Tensor) -> None:
        """Note what rounding a block loses, in between or at the end."""
        step = 1 if block.numel() <= _WHOLE_ELEMENTS else _EVERY
        some = block[::step]
        errors = scratch("rounding", tuple(some.shape), torch.float32)
        lost = sum_squares(errors.copy_(rounded[::step]).sub_(some))
        self._lost += lost * (len(block) / max(1, len(some)))
        self._rounded = True

    def finish(self, block: torch.Tensor, rounded: torch.Tensor, largest: float | None) -> None:
        """Hand in the block, whose rounded values, up to ``largest``, are about to be written."""
        if not self._rounded and block.dtype != rounded.dtype:
            self.add_rounding(block, rounded)
        change = sum_squares(self._start.sub_(block)) if self._recorder.by_blocks else 0.0
        self._recorder.blocks[self._begin] = BlockStatistics(
            self._before, change, self._lost, largest, tuple(self._stages)
        )


def sum_squares(values: torch.Tensor) -> float:
    """The sum of squares of float32 values, which torch adds up on one thread."""
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))


@dataclass(frozen=True)
class RowStatistics:
    """Of a block of rows: the norm of each, and sums of squares of the rows that were there
    ``before`` and of their ``change``.
    """

    norms: tuple[float, ...]
    before: float = 0.0
    change: float = 0.0


class RowRecorder:
    """Collects the norms of a tensor's rows, and how rows differ from another tensor's.

    ``before`` is what the rows are compared with, as far as it has them; None to compare nothing.
    """

    def __init__(self, shape: tuple[int, ...], before: LazyTensor | None = None) -> None:
        self.rows, self.step = shape[0], block_rows(shape)
        self.before = before
        self.blocks: dict[int, RowStatistics] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every row has been seen."""
        return len(self.blocks) == len(range(0, self.rows, self.step))

    def observe(self, start: int, rows: torch.Tensor, read_before: RowReader | None) -> None:
        """Note the whole blocks among ``rows``, of which ``start`` is the first."""
        stop = start + len(rows)
        for begin in range(-(-start // self.step) * self.step, stop, self.step):
            end = min(begin + self.step, self.rows)
            if end <= stop:
                self._observe_block(begin, rows[begin - start : end - start], read_before)

    def _observe_block(self, begin: int, rows: torch.Tensor, read_before: RowReader | None) -> None:
        block = scratch("observed rows", tuple(rows.shape), torch.float32).copy_(rows)
        norms = tuple(torch.linalg.vector_norm(block.flatten(1), dim=1).tolist())
        squares = (0.0, 0.0)
        if self.before is not None and read_before is not None:
            squares = self._compare(begin, block, self.before, read_before)
        self.blocks[begin] = RowStatistics(norms, *squares)

    def _compare(
        self, begin: int, block: torch.Tensor, before: LazyTensor, read_before: RowReader
    ) -> tuple[float, float]:
        count = max(0, min(begin + len(block), before.rows) - begin)
        if not count:
            return 0.0, 0.0
        shape = (count, *before.shape[1:])
        raw = scratch("rows before, raw", shape, before.dtype)
        read_before(begin, begin + count, raw)
        old = scratch("rows before", shape, torch.float32).copy_(raw)
        square = sum_squares(old)
        return square, sum_squares(old.sub_(block[:count]))

    def list_norms(self) -> list[float]:
        """The norm of every row, in their order."""
        return [norm for begin in sorted(self.blocks) for norm in self.blocks[begin].norms]

    def sum_up(self) -> RowStatistics:
        """The statistics of the whole tensor."""
        blocks = [self.blocks[begin] for begin in sorted(self.blocks)]
        return RowStatistics(
            tuple(self.list_norms()),
            math.fsum(block.before for block in blocks),
            math.fsum(block.change for block in blocks),
        )

    def take_state(self) -> dict[int, RowStatistics]:
        """What has been collected since the last call, by a block's first row."""
        taken, self.blocks = self.blocks, {}
        return taken

    def add_state(self, blocks: Mapping[int, RowStatistics]) -> None:
        """Add what another recorder of the same tensor has collected."""
        self.blocks |= blocks


@dataclass(frozen=True)
class ObservedTensor(LazyTensor):
    """``base``, whose rows a recorder sees as they are read."""

    base: LazyTensor
    recorder: RowRecorder = field(compare=False)

    @property
    def rejects_nonfinite(self) -> bool:
        return self.base.rejects_nonfinite

    def allowing_nonfinite(self) -> LazyTensor:
        return replace(self, base=self.base.allowing_nonfinite())

    def without_digest(self) -> LazyTensor:
        """The same rows, not looked at: whoever reads them so does not read them all."""
        return self.base.without_digest()

    def reader(self) -> RowReader:
        base_rows, before = self.base.reader(), self.recorder.before
        read_before = None if before is None else before.reader()

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            base_rows(start, stop, out)
            self.recorder.observe(start, out, read_before)

        return fill
