"""The numbers of a result against its recipe, and its content digests, in one reading.

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

import torch
from torch.nn.functional import linear
from xxhash import xxh3_128

from ..formats.gguf import Q8Tensor
from ..storage.files import tensor_bytes
from ..tensors.digests import content_digest
from ..tensors.lazy import LazyTensor
from .reading import Rows, row_range, side_by_side
from .recipes import ExpectedTensor, Segment
from .reference import SIGMAS, Change, Expected, Quantise, Round, Step, to_float64
from .ulps import INCOMPARABLE, bits, coarser, distances, nearest

# Random vectors of the probe. Each misses a wrong row with its own chance.
VECTORS = 4
# A piece of the arithmetic: its float64 copies stay in a core's cache.
_PIECE_ELEMENTS = 1 << 16
# Below it float32 has fewer digits, or none: terms may vanish, and so may tolerances.
_NOTHING = torch.finfo(torch.float32).tiny


@dataclass
class Exactness:
    """How near elements are to their float64 values, rounded once to the dtype of the result.

    ``max_ulp`` is the largest distance in units in the last place, ``INCOMPARABLE`` where one side
    alone is NaN or infinite. Elements of quantized blocks are not counted.
    """

    elements: int = 0
    identical: int = 0
    max_ulp: int = 0

    @property
    def share(self) -> float:
        """Share of the elements that are identical; 1 where none is counted."""
        return self.identical / self.elements if self.elements else 1.0

    def add(self, other: Exactness) -> None:
        """Count further elements."""
        self.elements += other.elements
        self.identical += other.identical
        self.max_ulp = max(self.max_ulp, other.max_ulp)

    @classmethod
    def of(cls, found: torch.Tensor, expected: torch.Tensor) -> Exactness:
        """Compare elements with what they must be, both of one dtype and shape; -0 is 0."""
        ours, theirs = found.flatten(), expected.flatten()
        if torch.equal(bits(ours), bits(theirs)):
            return cls(len(ours), len(ours))
        places = (bits(ours) != bits(theirs)).nonzero().flatten()
        ours, theirs = (bits(side)[places].view(side.dtype) for side in (ours, theirs))
        apart = torch.full((len(places),), INCOMPARABLE)
        if found.dtype.is_floating_point:
            apart = distances(ours, theirs)
        apart[ours.double() == theirs.double()] = 0
        identical = found.numel() - int(apart.count_nonzero())
        return cls(found.numel(), identical, int(apart.max()))


@dataclass
class TensorResult:
    """What was found out about one tensor.

    ``wrong`` counts elements outside their tolerance, ``first`` tells of one: its place, what it
    must be, by how much it may be off, what it is. ``wrong_rows`` counts rows whose probe is off.
    """

    name: str
    shape: tuple[int, ...]
    elements: int = 0
    wrong: int = 0
    wrong_rows: int = 0
    first: tuple[tuple[int, ...], float, float, float] | None = None
    unchecked: list[str] = field(default_factory=list)
    digest: str = ""
    base_digest: str | None = None
    exactness: Exactness = field(default_factory=Exactness)
    _added: float = 0.0
    _squares: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether nothing contradicts."""
        return not self.wrong and not self.wrong_rows

    @property
    def share_added(self) -> float | None:
        """How much was added, as a multiple of what the adapters add; None where they add none."""
        return self._added / self._squares if self._squares else None

    def take(self, piece: PieceResult) -> None:
        """Count what a piece gave."""
        self.elements += piece.elements
        self.wrong += piece.wrong
        self.wrong_rows += piece.wrong_rows
        self.first = self.first or piece.first
        self.exactness.add(piece.exactness)
        self._added += piece.added
        self._squares += piece.squares


@dataclass(frozen=True)
class PieceResult:
    """The counts of some rows."""

    elements: int
    wrong: int = 0
    wrong_rows: int = 0
    first: tuple[tuple[int, ...], float, float, float] | None = None
    added: float = 0.0
    squares: float = 0.0
    exactness: Exactness = field(default_factory=Exactness)


def signs(name: str, columns: int, vectors: int = VECTORS) -> torch.Tensor:
    """The probe of a tensor: (vectors, columns) of -1 and 1 in float64, the same in every run."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:7], "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (vectors, columns), generator=generator).mul_(2).sub_(1).double()


def check_tensor(
    name: str,
    found: LazyTensor,
    recipe: ExpectedTensor | None,
    base: LazyTensor | None,
    pool: ThreadPoolExecutor,
    on_bytes: Callable[[int], object],
) -> TensorResult:
    """Read a tensor once, with its inputs beside it, and hold each row against the recipe.

    ``base`` gets a digest where all of it is read. Without a recipe only the digest is made.
    """
    result = TensorResult(name, found.shape)
    hashing, blocks = xxh3_128(), blocks_of(found)
    for segment, why in _segments(found, recipe):
        tensors = [row_range(found, segment.first, segment.last)]
        if why is not None:
            result.unchecked.append(f"rows {segment.first} to {segment.last}: {why}")
        else:
            tensors += [_rows_of(tensor, segment) for tensor in _streams(segment)]
        is_base = why is None and segment.start is base and base is not None
        base_hashing = xxh3_128() if is_base and tensors[1] is base else None
        check = _Check(name, segment, found) if why is None else None
        for first, _, rows in side_by_side(tensors):
            jobs: list[Future[PieceResult]] = []
            if check is not None:
                jobs = [
                    pool.submit(check.piece, first + begin, piece) for begin, piece in _pieces(rows)
                ]
            digests = []
            if blocks is None:
                digests = [pool.submit(hashing.update, tensor_bytes(rows[0]))]
            if base_hashing is not None:
                digests.append(pool.submit(base_hashing.update, tensor_bytes(rows[1])))
            for job in jobs:
                result.take(job.result())
            for digest in digests:
                digest.result()
            on_bytes(sum(part.nbytes for part in rows))
        if base_hashing is not None:
            result.base_digest = base_hashing.hexdigest()
    result.digest = hashing.hexdigest() if blocks is None else content_digest(blocks)
    return result


def blocks_of(tensor: LazyTensor) -> LazyTensor | None:
    """The blocks of a quantised matrix, in Hugging Face's order of rows; None for any other."""
    return tensor.blocks if isinstance(tensor, Q8Tensor) else None


def _segments(
    found: LazyTensor, recipe: ExpectedTensor | None
) -> Iterator[tuple[Segment, str | None]]:
    """Every row of the tensor, in order: its segment, and why it cannot be checked, if so."""
    if recipe is None or recipe.uncovered is not None:
        why = "not asked for" if recipe is None else recipe.uncovered
        yield Segment(0, found.rows, None), why
        return
    yield from ((segment, None) for segment in recipe.segments)
    if recipe.rows < found.rows:
        why = "new tokens, which no input has"
        yield Segment(recipe.rows, found.rows, None), why


def _streams(segment: Segment) -> list[LazyTensor]:
    start = [segment.start] if segment.start is not None else []
    return [*start, *(tensor for step in segment.steps for tensor in step.streams)]


def _rows_of(tensor: LazyTensor, segment: Segment) -> LazyTensor:
    """The rows of a segment; a dense tensor that is shorter gives what it has."""
    return row_range(tensor.without_digest(), segment.first, min(segment.last, tensor.rows))


def _columns(tensor: LazyTensor) -> int:
    return tensor.row_bytes // tensor.dtype.itemsize


def _pieces(rows: Rows) -> Iterator[tuple[int, Rows]]:
    step = max(1, _PIECE_ELEMENTS // max(1, rows[0][:1].numel()))
    for begin in range(0, len(rows[0]), step):
        yield begin, tuple(part[begin : begin + step] for part in rows)


class _Check:
    """The comparison of a segment's rows, with the factors of its steps at hand."""

    def __init__(self, name: str, segment: Segment, found: LazyTensor) -> None:
        self._segment = segment
        self._dtype = found.dtype
        self._columns = _columns(found)
        self._signs = signs(name, self._columns)
        self._is_quantised = blocks_of(found) is not None
        self._is_exact = not segment.steps and not self._is_quantised
        last = Quantise() if self._is_quantised else Round(found.dtype)
        self._last = last.opened(self._signs)
        roundings = (step.dtype for step in segment.steps if isinstance(step, Round))
        self._rounded_to = reduce(coarser, roundings, found.dtype)
        self._steps: list[tuple[Step, Change]] = [
            (step, step.opened(self._signs)) for step in segment.steps
        ]

    def piece(self, first: int, rows: Rows) -> PieceResult:
        """Check rows that begin at ``first`` of the segment."""
        found, given = rows[0], list(rows[1:])
        start = given.pop(0) if self._segment.start is not None else torch.zeros_like(found)
        if self._is_exact and start.dtype != torch.float64:
            return self._equal(first, found, start.to(self._dtype))
        return self._close(first, found, start, given)

    def _equal(self, first: int, found: torch.Tensor, wanted: torch.Tensor) -> PieceResult:
        """What is only carried over must have the same bits."""
        same = bits(found) == bits(wanted)
        if bool(same.all()):
            exactness = Exactness(found.numel(), found.numel())
            return PieceResult(found.numel(), exactness=exactness)
        wrong = (~same).flatten(1) if found.dim() > 1 else (~same).unsqueeze(1)
        flat = found.reshape(len(found), -1).double(), wanted.reshape(len(found), -1).double()
        none = torch.zeros_like(flat[0])
        place = self._place(first, wrong, flat[1], none, flat[0])
        rows = int(wrong.any(dim=1).sum())
        exactness = Exactness.of(found, wanted)
        return PieceResult(found.numel(), int(wrong.sum()), rows, place, exactness=exactness)

    def _close(
        self, first: int, found: torch.Tensor, start: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> PieceResult:
        piece = Expected.of(start, self._signs)
        actual = to_float64(found)
        if start.dtype == torch.float64:
            piece.relative = 2.0**-24
        streams = iter(given)
        for step, change in self._steps:
            along = [next(streams).reshape(len(found), -1) for _ in step.streams]
            change(piece, self._segment.first + first, along)
        exactness = Exactness()
        if not self._is_quantised:
            rounded = nearest(piece.values, self._rounded_to)
            exactness = Exactness.of(found.reshape(len(found), -1).to(rounded.dtype), rounded)
        self._last(piece, 0, ())
        off_by = torch.sub(actual, piece.values).float().abs_().sub_(piece.tolerance)
        wrong = None if bool(off_by.max() <= _NOTHING) else ~(off_by <= _NOTHING)  # NaN is wrong
        seen = linear(actual, self._signs)
        # In float32 the squares of tolerances below 1e-23 would vanish.
        allowed = torch.linalg.vector_norm(piece.tolerance, dim=1, dtype=torch.float64)
        allowed = allowed.mul_(SIGMAS).clamp_(min=_NOTHING)
        off = ~((seen - piece.probe).abs() <= allowed.unsqueeze(1))
        place = None
        if wrong is not None:
            place = self._place(first, wrong, piece.values, piece.tolerance, actual)
        return PieceResult(
            found.numel(),
            0 if wrong is None else int(wrong.sum()),
            int(off.any(dim=1).sum()),
            place,
            float(((seen - piece.probe + piece.added) * piece.added).sum()),
            float(piece.added.square().sum()),
            exactness,
        )

    def _place(
        self,
        first: int,
        wrong: torch.Tensor,
        wanted: torch.Tensor,
        tolerance: torch.Tensor,
        actual: torch.Tensor,
    ) -> tuple[tuple[int, ...], float, float, float]:
        row, column = map(int, wrong.nonzero()[0])
        values = (float(side[row, column]) for side in (wanted, tolerance, actual))
        index = (self._segment.first + first + row, column)
        return (index if self._columns > 1 else index[:1]), *values  # type: ignore[return-value]
