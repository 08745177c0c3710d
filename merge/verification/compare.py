"""Two checkpoints tensor by tensor, in any two layouts and dtypes.

A tensor in q8_0 beside one in another type is judged by the rule of ``verify_merge``: within the
error of its blocks (``reference.block_error``). Two in q8_0 are compared as the numbers they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ..formats.gguf import Q8_0_NAME, type_name
from ..lazy import LazyTensor, dtype_name
from .reading import Rows, one_torch_thread, side_by_side
from .reference import block_error, half_ulp
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

    ``types`` are what the files hold: dtypes by name, or ``q8_0``. ``compared_in`` is the coarser
    of two dtypes, in which ulp are counted after rounding both to it; None for integers, whose
    every difference is ``BEYOND``. ``max_abs`` is the largest difference of finite numbers, before
    any rounding.

    With ``in_blocks`` one of the two is in q8_0. Then what differs is what is further apart than
    the error of its block; it is ``BEYOND``, and ``max_abs`` counts what does not differ too.
    """

    name: str
    shape: tuple[int, ...]
    types: tuple[str, str]
    compared_in: torch.dtype | None
    in_blocks: bool
    elements: int = 0
    differing: int = 0
    max_ulp: int = 0
    max_abs: float = 0.0
    handful: list[Element] = field(default_factory=list)

    @property
    def is_identical(self) -> bool:
        """Whether both have the same type and the same bits."""
        return not self.differing and self.types[0] == self.types[1]

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
    dtypes, types = (ours.dtype, theirs.dtype), (type_name(ours), type_name(theirs))
    floats = all(dtype.is_floating_point for dtype in dtypes)
    in_blocks = floats and types.count(Q8_0_NAME) == 1
    compared_in = coarser(*dtypes) if floats else None
    result = TensorComparison(name, ours.shape, types, compared_in, in_blocks)
    for start, _, rows in side_by_side((ours, theirs)):
        result.elements += rows[0].numel()
        if dtypes[0] != dtypes[1] or not torch.equal(*map(bits, rows)):
            _add_rows(result, start, rows)
    return result


def _add_rows(result: TensorComparison, start: int, rows: Rows) -> None:
    """Count what differs in rows from ``start`` on, in pieces that stay in the cache."""
    for first, piece in _pieces(rows):
        ours, theirs = piece
        apart = _apart(result, ours, theirs)
        if result.in_blocks:
            result.max_abs = max(result.max_abs, _largest(ours.double() - theirs.double()))
        where = apart.nonzero()
        if not len(where):
            continue
        values = ours[tuple(where.T)].double(), theirs[tuple(where.T)].double()
        ulps = apart[tuple(where.T)]
        result.differing += len(where)
        result.max_ulp = max(result.max_ulp, int(ulps.max()))
        result.max_abs = max(result.max_abs, _largest(values[0] - values[1]))
        for index, one, other, ulp in zip(where, *values, ulps, strict=False):
            if len(result.handful) > HANDFUL:
                break
            at = (start + first + int(index[0]), *map(int, index[1:]))
            place = at if result.shape else ()
            result.handful.append(Element(place, float(one), float(other), int(ulp)))


def _apart(result: TensorComparison, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How far each two elements are apart: ulp, or 0 and ``BEYOND`` (int64)."""
    if result.compared_in is None:
        return (ours != theirs) * BEYOND
    if result.in_blocks:
        pair = (ours, theirs) if result.types[0] == Q8_0_NAME else (theirs, ours)
        return beyond_block_error(*pair) * BEYOND
    return distances(ours.to(result.compared_in), theirs.to(result.compared_in))


def beyond_block_error(quantised: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Where numbers read from q8_0 blocks cannot be what ``plain`` became there (bool).

    Both are (rows, columns), any floating-point dtype. ``plain`` may itself be rounded once, to its
    dtype, from what was quantised.
    """
    magnitudes = plain.float().abs()
    rounding = half_ulp(magnitudes.clone(), plain.dtype)
    allowed = rounding + block_error(magnitudes + rounding)
    near = (quantised.double() - plain.double()).abs() <= allowed
    return ~(near & magnitudes.isfinite())


def _largest(gaps: torch.Tensor) -> float:
    """The largest magnitude of finite numbers, 0 where there is none."""
    finite = gaps[gaps.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def _pieces(rows: Rows) -> Iterator[tuple[int, Rows]]:
    step = max(1, (1 << 18) // max(1, rows[0][:1].numel()))
    for first in range(0, len(rows[0]), step):
        yield first, tuple(part[first : first + step] for part in rows)


def told(tensor: TensorComparison) -> Iterator[str]:
    """A difference in words: one line, and one for each element where they are a handful."""
    yield f"{tensor.name}: {' and '.join(dict.fromkeys(tensor.types))} {tensor.shape}"
    counted = f"{tensor.differing:,} of {tensor.elements:,} elements ({tensor.share:.2%})"
    if tensor.in_blocks:
        share = f"{counted} are not " if tensor.differing else ""
        yield f"  {share}within the error of q8_0 blocks: at most {tensor.max_abs:.3g} absolute"
        yield from _elements(tensor)
        return
    if not tensor.differing:
        yield f"  equal in {dtype_name_of(tensor)}, the coarser of the two"
        return
    rounded = f" in {dtype_name_of(tensor)}" if tensor.types[0] != tensor.types[1] else ""
    yield (
        f"  differ in {counted}: at most {ulp_text(tensor.max_ulp)}{rounded}, "
        f"{tensor.max_abs:.3g} absolute"
    )
    yield from _elements(tensor)


def _elements(tensor: TensorComparison) -> Iterator[str]:
    """The elements that differ, where they are a handful."""
    if tensor.differing <= HANDFUL:
        for e in tensor.handful:
            distance = "" if tensor.in_blocks else f" ({ulp_text(e.ulp)})"
            yield f"  {list(e.index)}: {e.ours:.9g} and {e.theirs:.9g}{distance}"


def dtype_name_of(tensor: TensorComparison) -> str:
    """The dtype in which ulp were counted."""
    return dtype_name(tensor.compared_in) if tensor.compared_in is not None else "integers"


def ulp_text(ulp: int) -> str:
    """``3 ulp``; a number beside NaN or infinity is no number of ulp apart."""
    return f"{ulp:,} ulp" if ulp != BEYOND else "no number of ulp (NaN, infinity or integers)"
