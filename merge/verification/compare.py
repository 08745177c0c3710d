"""Two checkpoints tensor by tensor, in any two layouts and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ..lazy import LazyTensor, dtype_name
from .reading import Rows, one_torch_thread, side_by_side
from .ulps import BEYOND, bits, coarser, distances

# So many differing elements are a handful, and are told one by one.
HANDFUL = 8

OnProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class Element:
    """One element that differs: where, what each side has, how many ulp apart."""

    index: tuple[int, ...]
    ours: float
    theirs: float
    ulp: int


@dataclass
class TensorComparison:
    """How one tensor of the first checkpoint differs from that of the second.

    ``compared_in`` is the coarser of two dtypes, in which ulp are counted after rounding both to
    it; None for integers, whose every difference is ``BEYOND``. ``max_abs`` is the largest
    difference of finite numbers, before any rounding.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, torch.dtype]
    compared_in: torch.dtype | None
    elements: int = 0
    differing: int = 0
    max_ulp: int = 0
    max_abs: float = 0.0
    handful: list[Element] = field(default_factory=list)

    @property
    def is_identical(self) -> bool:
        """Whether both have the same dtype and the same bits."""
        return not self.differing and self.dtypes[0] == self.dtypes[1]

    @property
    def share(self) -> float:
        """Share of the elements that differ."""
        return self.differing / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Comparison:
    """All tensors of two checkpoints: compared, of other shapes, and in one of them only."""

    compared: tuple[TensorComparison, ...]
    other_shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    def differ(self, max_ulp: int = 0) -> bool:
        """Whether anything is further apart than ``max_ulp``, of another shape, or alone."""
        apart = any(tensor.max_ulp > max_ulp for tensor in self.compared)
        return bool(apart or self.other_shapes or self.missing or self.extra)


def compare(
    ours: Mapping[str, LazyTensor],
    theirs: Mapping[str, LazyTensor],
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare tensors of the same names; blocks of rows are in memory, never a whole tensor.

    ``on_progress(done, total)`` is called with bytes of the first checkpoint.
    """
    shared = [name for name in ours if name in theirs]
    same = [name for name in shared if ours[name].shape == theirs[name].shape]
    total, done = sum(ours[name].nbytes for name in same), 0
    compared = []
    with one_torch_thread():
        for name in same:
            compared.append(_compare_tensor(name, ours[name], theirs[name]))
            done += ours[name].nbytes
            if on_progress is not None and total:
                on_progress(done, total)
    return Comparison(
        tuple(compared),
        {name: (ours[name].shape, theirs[name].shape) for name in shared if name not in same},
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
    )


def _compare_tensor(name: str, ours: LazyTensor, theirs: LazyTensor) -> TensorComparison:
    dtypes = ours.dtype, theirs.dtype
    floats = all(dtype.is_floating_point for dtype in dtypes)
    result = TensorComparison(name, ours.shape, dtypes, coarser(*dtypes) if floats else None)
    for start, _, rows in side_by_side((ours, theirs)):
        result.elements += rows[0].numel()
        if dtypes[0] != dtypes[1] or not torch.equal(*map(bits, rows)):
            _add_rows(result, start, rows)
    return result


def _add_rows(result: TensorComparison, start: int, rows: Rows) -> None:
    """Count what differs in rows from ``start`` on, in pieces that stay in the cache."""
    for first, piece in _pieces(rows):
        ours, theirs = piece
        if result.compared_in is None:
            apart = (ours != theirs) * BEYOND
        else:
            apart = distances(ours.to(result.compared_in), theirs.to(result.compared_in))
        where = apart.nonzero()
        if not len(where):
            continue
        values = ours[tuple(where.T)].double(), theirs[tuple(where.T)].double()
        ulps = apart[tuple(where.T)]
        gaps = (values[0] - values[1]).abs()
        finite = gaps[gaps.isfinite()]
        result.differing += len(where)
        result.max_ulp = max(result.max_ulp, int(ulps.max()))
        result.max_abs = max(result.max_abs, float(finite.max()) if len(finite) else 0.0)
        for index, one, other, ulp in zip(where, *values, ulps, strict=False):
            if len(result.handful) > HANDFUL:
                break
            at = (start + first + int(index[0]), *map(int, index[1:]))
            place = at if result.shape else ()
            result.handful.append(Element(place, float(one), float(other), int(ulp)))


def _pieces(rows: Rows) -> Iterator[tuple[int, Rows]]:
    step = max(1, (1 << 18) // max(1, rows[0][:1].numel()))
    for first in range(0, len(rows[0]), step):
        yield first, tuple(part[first : first + step] for part in rows)


def told(tensor: TensorComparison) -> Iterator[str]:
    """A difference in words: one line, and one for each element where they are a handful."""
    kinds = " and ".join(dict.fromkeys(map(dtype_name, tensor.dtypes)))
    yield f"{tensor.name}: {kinds} {tensor.shape}"
    if not tensor.differing:
        yield f"  equal in {dtype_name_of(tensor)}, the coarser of the two"
        return
    counted = f"{tensor.differing:,} of {tensor.elements:,} elements ({tensor.share:.2%})"
    rounded = f" in {dtype_name_of(tensor)}" if tensor.dtypes[0] != tensor.dtypes[1] else ""
    yield (
        f"  differ in {counted}: at most {ulp_text(tensor.max_ulp)}{rounded}, "
        f"{tensor.max_abs:.3g} absolute"
    )
    if tensor.differing <= HANDFUL:
        for e in tensor.handful:
            yield f"  {list(e.index)}: {e.ours:.9g} and {e.theirs:.9g} ({ulp_text(e.ulp)})"


def dtype_name_of(tensor: TensorComparison) -> str:
    """The dtype in which ulp were counted."""
    return dtype_name(tensor.compared_in) if tensor.compared_in is not None else "integers"


def ulp_text(ulp: int) -> str:
    """``3 ulp``; a number beside NaN or infinity is no number of ulp apart."""
    return f"{ulp:,} ulp" if ulp != BEYOND else "no number of ulp (NaN, infinity or integers)"
