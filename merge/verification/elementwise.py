"""The numbers of a result against its inputs, and its content digests, in one reading.

Each matrix is checked in two ways on the same blocks. Every element must lie within its own
tolerance of a float64 reference. And random vectors of signs are multiplied with both sides, where
the reference goes the short way, ``W x + scaling * B (A x)``: the product ``B A`` is never made
there, so this does not share the first check's mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray

from ..formats.blocks import BlockTensor
from ..messages import tr
from ..tensors.digests import DIGEST_VERSION, compute_digest, make_digest
from ..tensors.lazy import LazyTensor
from .block_rows import find_far_rows, limit_of_share
from .exactness import Exactness
from .expected_tensor import ExpectedTensor, RowSegment
from .reading import Rows, iter_rows_together, slice_rows
from .reference import (
    SIGMAS,
    Change,
    ExpectedRows,
    Operation,
    Quantize,
    Round,
    compute_half_ulp,
    project,
    to_float64,
)
from .screen import Screen
from .ulps import choose_coarser, round_to_nearest, view_as_integers

# Random vectors of the probe. Each misses a wrong row with its own chance.
PROBE_VECTORS = 4
# A piece of the arithmetic: large beside what each call of torch costs.
_PIECE_ELEMENTS = 1 << 17
# What a thread is given at a time: a span is a few of them.
_SHARE_ELEMENTS = 1 << 19
# Below it float32 has fewer digits, or none: terms may vanish, and so may tolerances.
_FLOAT32_TINY = torch.finfo(torch.float32).tiny
# Above it a norm in float32 loses nothing by squares of elements that vanish.
_LEAST_NORM = 1e-15


@dataclass
class Counts:
    """What was found out about some rows of a tensor.

    ``failed`` counts elements outside their tolerance, ``first`` describes one: its index, what it
    must be, by how much it may be off, what it is. ``failed_rows`` counts rows whose probe is off.
    ``added`` and ``squares`` are sums of which ``TensorResult.share_added`` is the ratio, ``noise``
    is the sum of squares of what the first of them adds up beside the share.
    """

    elements: int = 0
    failed: int = 0
    failed_rows: int = 0
    first: tuple[tuple[int, ...], float, float, float] | None = None
    added: float = 0.0
    squares: float = 0.0
    noise: float = 0.0
    exactness: Exactness = field(default_factory=Exactness)

    def add(self, other: Counts) -> None:
        """Count further rows."""
        self.elements += other.elements
        self.failed += other.failed
        self.failed_rows += other.failed_rows
        self.first = self.first or other.first
        self.added += other.added
        self.squares += other.squares
        self.noise += other.noise
        self.exactness.add(other.exactness)


@dataclass(kw_only=True)
class TensorResult(Counts):
    """What was found out about one tensor; ``unchecked`` says which rows are not checked and why.

    ``kind`` is ggml's name of blocks whose elements have no bound; see ``block_rows.py``.

    ``digest`` is the XXH3 of its content, ``base_digest`` that of the base's tensor where all of it
    was read.
    """

    name: str
    unchecked: list[str] = field(default_factory=list)
    digest: str = ""
    base_digest: str | None = None
    kind: str | None = None

    @property
    def is_within_tolerance(self) -> bool:
        """Whether every element and every row is within its tolerance, and the share that was
        added where elements have none.
        """
        share, limit = self.share_added, self.limit_of_share
        is_share_right = share is None or limit is None or abs(share - 1) <= limit
        is_right = is_share_right or self.is_share_unseen
        return not self.failed and not self.failed_rows and is_right

    @property
    def limit_of_share(self) -> float | None:
        """By how much the share may miss 1; None where each element has its own tolerance."""
        if self.kind is None or not self.squares:
            return None
        return limit_of_share(self.kind, self.noise, self.squares, SIGMAS)

    @property
    def is_share_unseen(self) -> bool:
        """Whether the error of blocks may hide that nothing was added."""
        return self.limit_of_share is not None and self.limit_of_share >= 1

    @property
    def share_added(self) -> float | None:
        """How much was added, as a multiple of what the adapters add; None where they add none."""
        return self.added / self.squares if self.squares else None


def make_probe_vectors(name: str, columns: int, vectors: int = PROBE_VECTORS) -> torch.Tensor:
    """The probe of a tensor: (vectors, columns) of -1 and 1 in float64, the same in every run."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:7], "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (vectors, columns), generator=generator).mul_(2).sub_(1).double()


def check_tensor(
    name: str,
    found: LazyTensor,
    expected: ExpectedTensor | None,
    base: LazyTensor | None,
    pool: ThreadPoolExecutor,
    on_bytes: Callable[[int], object],
    digest_version: int = DIGEST_VERSION,
) -> TensorResult:
    """Read a tensor once, with its inputs beside it, and compare each row with what it must be.

    ``base`` gets a digest where all of it is read. Without ``expected`` only the digest is made.
    """
    result = TensorResult(name=name, kind=get_unbounded_kind(found))
    hashing, blocks = make_digest(found.shape, digest_version), get_blocks(found)
    for segment, why in _list_segments(found, expected):
        tensors = [slice_rows(found, segment.first, segment.last)]
        if why is not None:
            result.unchecked.append(
                tr("rows {first} to {last}: {why}", first=segment.first, last=segment.last, why=why)
            )
        else:
            tensors += [_slice_segment(tensor, segment) for tensor in segment.streams]
        is_base = why is None and segment.start is base and tensors[1] is base
        base_hashing = make_digest(base.shape, digest_version) if base and is_base else None
        check = _SegmentCheck(name, segment, found) if why is None else None
        for first, _, rows in iter_rows_together(tensors):
            jobs: list[Future[Counts]] = []
            if check is not None:
                jobs = [
                    pool.submit(check.compare, first + begin, piece)
                    for begin, piece in _split_rows(rows, _SHARE_ELEMENTS)
                ]
            digests = []
            if blocks is None:
                digests = [pool.submit(hashing.add, segment.first + first, rows[0])]
            if base_hashing is not None:
                digests.append(pool.submit(base_hashing.add, first, rows[1]))
            for job in jobs:
                result.add(job.result())
            for digest in digests:
                digest.result()
            on_bytes(sum(part.nbytes for part in rows))
        if base_hashing is not None:
            result.base_digest = base_hashing.hexdigest()
    if blocks is None:
        result.digest = hashing.hexdigest() or ""
    else:
        result.digest = compute_digest(blocks, digest_version)
    return result


def get_blocks(tensor: LazyTensor) -> LazyTensor | None:
    """The blocks of a quantized matrix, in Hugging Face's order of rows; None for any other."""
    return tensor.blocks if isinstance(tensor, BlockTensor) else None


def get_unbounded_kind(tensor: LazyTensor) -> str | None:
    """ggml's name of the tensor's blocks where single elements have no bound."""
    is_unbounded = isinstance(tensor, BlockTensor) and not tensor.is_q8_0
    return tensor.kind if isinstance(tensor, BlockTensor) and is_unbounded else None


def _list_segments(
    found: LazyTensor, expected: ExpectedTensor | None
) -> Iterator[tuple[RowSegment, str | None]]:
    """Every row of the tensor, in order: its segment, and why it cannot be checked, if so."""
    if expected is None or expected.uncovered is not None:
        why = tr("not asked for") if expected is None else expected.uncovered
        yield RowSegment(0, found.rows, None), why
        return
    yield from ((segment, None) for segment in expected.segments)
    if expected.rows < found.rows:
        why = tr("new tokens, which no input has")
        yield RowSegment(expected.rows, found.rows, None), why


def _slice_segment(tensor: LazyTensor, segment: RowSegment) -> LazyTensor:
    """The rows of a segment; a dense tensor that is shorter gives what it has."""
    return slice_rows(tensor.without_digest(), segment.first, min(segment.last, tensor.rows))


def _count_columns(tensor: LazyTensor) -> int:
    return tensor.row_bytes // tensor.dtype.itemsize


def _split_rows(rows: Rows, elements: int) -> Iterator[tuple[int, Rows]]:
    step = max(1, elements // max(1, rows[0][:1].numel()))
    for begin in range(0, len(rows[0]), step):
        yield begin, tuple(part[begin : begin + step] for part in rows)


def _find_places(mask: NDArray[np.bool_]) -> torch.Tensor:
    """Where a mask is true, by flat index. numpy compares several times as fast as torch."""
    return torch.from_numpy(np.flatnonzero(mask))


def _bound_sums(tolerance: torch.Tensor) -> torch.Tensor:
    """How far the random sums of rows may be off, in float64."""
    norms: torch.Tensor = torch.linalg.vector_norm(tolerance, dim=1).double()
    are_exact = (norms > _LEAST_NORM) & norms.isfinite()
    if not bool(are_exact.all()):
        norms = torch.linalg.vector_norm(tolerance, dim=1, dtype=torch.float64)
    return norms.mul_(SIGMAS).clamp_(min=_FLOAT32_TINY)


class _SegmentCheck:
    """The comparison of a segment's rows, with the factors of its steps at hand."""

    def __init__(self, name: str, segment: RowSegment, found: LazyTensor) -> None:
        self._segment = segment
        self._dtype = found.dtype
        self._columns = _count_columns(found)
        self._probe_vectors = make_probe_vectors(name, self._columns)
        self._is_quantized = get_blocks(found) is not None
        self._kind = get_unbounded_kind(found)
        self._is_exact = not segment.steps and not self._is_quantized
        roundings = (step.dtype for step in segment.steps if isinstance(step, Round))
        self._rounded_to = reduce(choose_coarser, roundings, found.dtype)
        self._steps: list[tuple[Operation, Change]] = [
            (step, step.prepare(self._probe_vectors)) for step in segment.steps
        ]
        # Rounding to the result's own dtype, as before GGUF's container, is the last one itself.
        is_last = bool(self._steps) and self._steps[-1][0] == Round(found.dtype)
        changes = [change for _, change in self._steps[: -1 if is_last else None]]
        self._screen = None
        if not self._is_quantized:
            self._screen = Screen.of(segment, changes, found.dtype, self._probe_vectors)

    def compare(self, first: int, rows: Rows) -> Counts:
        """Check rows that begin at ``first`` of the segment."""
        right = self._screen.find_right(first, *rows) if self._screen is not None else None
        if right is not None:
            return Counts(
                rows[0].numel(), exactness=right.exactness, added=right.added, squares=right.squares
            )
        counts = Counts()
        for begin, piece in _split_rows(rows, _PIECE_ELEMENTS):
            counts.add(self._compare_piece(first + begin, piece))
        return counts

    def _compare_piece(self, first: int, rows: Rows) -> Counts:
        """Check a piece of rows that is small enough for its copies in float64."""
        found, given = rows[0], list(rows[1:])
        start = given.pop(0) if self._segment.start is not None else torch.zeros_like(found)
        if self._is_exact and start.dtype != torch.float64:
            return self._compare_bits(first, found, start.to(self._dtype))
        return self._compare_with_tolerance(first, found, start, given)

    def _compare_bits(self, first: int, found: torch.Tensor, expected: torch.Tensor) -> Counts:
        """What is only carried over must have the same bits."""
        sides = (view_as_integers(side).reshape(len(found), -1) for side in (found, expected))
        failed = _find_places(np.not_equal(*(side.numpy() for side in sides)))
        if not len(failed):
            exactness = Exactness(found.numel(), found.numel())
            return Counts(found.numel(), exactness=exactness)
        none = torch.zeros(found.numel())
        place = self._describe_first(first, failed, expected, none, found)
        exactness = Exactness.of(found, expected)
        return Counts(
            found.numel(), len(failed), self._count_rows(failed), place, exactness=exactness
        )

    def _compare_with_tolerance(
        self, first: int, found: torch.Tensor, start: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> Counts:
        piece = self._apply_steps(first, start, given)
        actual = to_float64(found)
        if self._kind is not None:
            return self._compare_rows(self._kind, piece, actual)
        seen = project(actual, self._probe_vectors)
        limits = self._allow_last_rounding(piece)
        off_by = actual.sub_(piece.values).float().abs_()
        with np.errstate(invalid="ignore"):
            places = _find_places(~(off_by.numpy() < limits.numpy()))  # NaN is among them
        exactness = self._measure_exactness(found, piece.values, places)
        beyond = off_by.flatten()[places].sub_(piece.tolerance.flatten()[places])
        failed = places[~(beyond <= _FLOAT32_TINY)]
        off = ~((seen - piece.probe).abs() <= _bound_sums(piece.tolerance).unsqueeze(1))
        place = None
        if len(failed):
            place = self._describe_first(first, failed, piece.values, piece.tolerance, found)
        return Counts(
            found.numel(),
            len(failed),
            int(off.any(dim=1).sum()),
            place,
            float(((seen - piece.probe + piece.added) * piece.added).sum()),
            float(piece.added.square().sum()),
            exactness=exactness,
        )

    def _apply_steps(
        self, first: int, start: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> ExpectedRows:
        """What the rows must be before their last rounding."""
        piece = ExpectedRows.of(start, self._probe_vectors)
        if start.dtype == torch.float64:
            piece.relative = 2.0**-24
        streams = iter(given)
        for step, change in self._steps:
            along = [next(streams).reshape(len(start), -1) for _ in step.streams]
            change(piece, self._segment.first + first, along)
        return piece

    def _allow_last_rounding(self, piece: ExpectedRows) -> torch.Tensor:
        """Complete the tolerances; return limits below which nothing has to be looked at.

        What is off by less than half a unit in the last place is what the value rounds to, and
        within every tolerance. A value that float32 may have rounded up to a power of two has the
        unit of the numbers below it.
        """
        if self._is_quantized:
            Quantize().prepare(self._probe_vectors)(piece, 0, ())
            return piece.tolerance
        magnitudes = piece.resolve_relative()
        limits = compute_half_ulp(magnitudes * (1 - 2.0**-23), self._dtype)
        piece.allow_rounding(magnitudes, self._dtype)
        return limits

    def _measure_exactness(
        self, found: torch.Tensor, values: torch.Tensor, places: torch.Tensor
    ) -> Exactness:
        """How near all elements are; those that are not at ``places`` are identical."""
        if self._is_quantized:
            return Exactness()
        if self._rounded_to != self._dtype:
            rounded = round_to_nearest(values, self._rounded_to)
            return Exactness.of(found.reshape(len(found), -1).to(rounded.dtype), rounded)
        ours = view_as_integers(found).flatten()[places].view(self._dtype)
        apart = Exactness.of(ours, round_to_nearest(values.flatten()[places], self._dtype))
        identical = found.numel() - len(places) + apart.identical
        return Exactness(found.numel(), identical, apart.max_ulp)

    def _compare_rows(self, kind: str, piece: ExpectedRows, actual: torch.Tensor) -> Counts:
        """Blocks without a bound for elements: rows by their norm, and the share that was added."""
        piece.resolve_relative()
        far = find_far_rows(kind, actual, piece.values, piece.tolerance)
        off = (project(actual, self._probe_vectors) - piece.probe).mul_(piece.added)
        squares = float(piece.added.square().sum())
        return Counts(
            actual.numel(),
            failed_rows=int(far.sum()),
            added=float(off.sum()) + squares,
            squares=squares,
            noise=float(off.square().sum()),
        )

    def _count_rows(self, places: torch.Tensor) -> int:
        return len(torch.unique(places // self._columns))

    def _describe_first(
        self,
        first: int,
        failed: torch.Tensor,
        expected: torch.Tensor,
        tolerance: torch.Tensor,
        actual: torch.Tensor,
    ) -> tuple[tuple[int, ...], float, float, float]:
        row, column = divmod(int(failed[0]), self._columns)
        values = (float(side.flatten()[failed[0]]) for side in (expected, tolerance, actual))
        index = (self._segment.first + first + row, column)
        return (index if self._columns > 1 else index[:1]), *values  # type: ignore[return-value]
