"""Two checkpoints tensor by tensor, in any two layouts and dtypes.

A tensor in q8_0 beside one in another type is judged by the rule of ``verify_merge``: within the
error of its blocks (``reference.compute_block_error``). Two in q8_0 are compared as the numbers
they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch

from ..errors import LayoutError
from ..formats.blocks import BLOCK, Q8_0_NAME
from ..formats.file_tensor import FileTensor
from ..formats.gguf import get_type_name
from ..messages import tr
from ..settings import OnProgress
from ..tensors.lazy import LazyTensor, get_dtype_name
from ..tensors.threads import use_one_torch_thread
from .reading import Rows, iter_rows_together
from .reference import compute_block_error, compute_half_ulp
from .ulps import INCOMPARABLE, choose_coarser, count_ulps, format_ulps, view_as_integers

# So many differing elements are a handful, and are listed one by one.
_HANDFUL = 8
# Elements that are looked at together: their copies in float64 stay in a core's cache.
_PIECE = 1 << 18
# A row that can only be read whole is in memory four times.
_WIDEST = 16 << 20


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
    every difference is ``INCOMPARABLE``. ``max_abs`` is the largest difference of finite numbers,
    before any rounding.

    With ``in_blocks`` one of the two is in q8_0. Then what differs is what is further apart than
    the error of its block; it is ``INCOMPARABLE``, and ``max_abs`` counts what does not differ too.
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
class CheckpointComparison:
    """All tensors of two checkpoints: compared, of other shapes, and in one of them only."""

    compared: tuple[TensorComparison, ...]
    other_shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    def differ(self, max_ulp: int = 0) -> bool:
        """Whether anything is further apart than ``max_ulp``, of another shape, or alone."""
        apart = any(tensor.max_ulp > max_ulp for tensor in self.compared)
        return bool(apart or self.other_shapes or self.missing or self.extra)


def compare_checkpoints(
    ours: Mapping[str, LazyTensor],
    theirs: Mapping[str, LazyTensor],
    on_progress: OnProgress | None = None,
) -> CheckpointComparison:
    """Compare tensors of the same names; blocks of rows are in memory, never a whole tensor.

    ``on_progress(done, total)`` is called with bytes of the first checkpoint.
    """
    shared = [name for name in ours if name in theirs]
    same = [name for name in shared if ours[name].shape == theirs[name].shape]
    total, done = sum(ours[name].nbytes for name in same), 0
    compared = []
    with use_one_torch_thread():
        for name in same:
            compared.append(_compare_tensor(name, ours[name], theirs[name]))
            done += ours[name].nbytes
            if on_progress is not None and total:
                on_progress(done, total)
    return CheckpointComparison(
        tuple(compared),
        {name: (ours[name].shape, theirs[name].shape) for name in shared if name not in same},
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
    )


def _compare_tensor(name: str, ours: LazyTensor, theirs: LazyTensor) -> TensorComparison:
    dtypes, types = (ours.dtype, theirs.dtype), (get_type_name(ours), get_type_name(theirs))
    floats = all(dtype.is_floating_point for dtype in dtypes)
    in_blocks = floats and types.count(Q8_0_NAME) == 1
    compared_in = choose_coarser(*dtypes) if floats else None
    result = TensorComparison(name, ours.shape, types, compared_in, in_blocks)
    for _, _, rows in iter_rows_together(_flatten_both(ours, theirs), in_blocks=False):
        if dtypes[0] != dtypes[1] or not torch.equal(*map(view_as_integers, rows)):
            _add_elements(result, result.elements, rows)
        result.elements += rows[0].numel()
    return result


def _flatten_both(ours: LazyTensor, theirs: LazyTensor) -> tuple[LazyTensor, LazyTensor]:
    """Two tensors of one shape such that no row is wide: as single elements, where they lie so.

    Raises ``LayoutError`` for wide rows that can only be read whole.
    """
    flat = _flatten(ours), _flatten(theirs)
    if flat[0] is not None and flat[1] is not None:
        return flat[0], flat[1]
    for tensor in (ours, theirs):
        if tensor.row_bytes > _WIDEST:
            raise LayoutError(
                tr("a tensor has rows too wide to be compared"),
                file=tensor.path,
                tensor=tensor.origin,
                expected=tr(
                    "rows of at most {widest:,} bytes, or elements that lie in a row",
                    widest=_WIDEST,
                ),
                found=tr(
                    "shape {shape}, rows of {row_bytes:,} bytes",
                    shape=tensor.shape,
                    row_bytes=tensor.row_bytes,
                ),
                remedy=tr(
                    "no model has such rows; save the tensor anew, contiguous, as safetensors"
                ),
            )
    return ours, theirs


def _flatten(tensor: LazyTensor) -> LazyTensor | None:
    """The elements of a tensor as one row of rows; None where they do not lie one by one."""
    if not isinstance(tensor, FileTensor) or not tensor.is_contiguous():
        return None
    return replace(tensor, shape=(prod(tensor.shape),), strides=(1,))


def _add_elements(result: TensorComparison, start: int, rows: Rows) -> None:
    """Count what differs from element ``start`` on, in pieces that stay in the cache."""
    sides = [part.reshape(-1) for part in rows]
    for first in range(0, len(sides[0]), _PIECE):
        ours, theirs = (side[first : first + _PIECE] for side in sides)
        apart = _measure_distances(result, ours, theirs)
        if result.in_blocks:
            result.max_abs = max(result.max_abs, _find_largest(ours.double() - theirs.double()))
        where = apart.nonzero().flatten()
        if not len(where):
            continue
        values = ours.double()[where], theirs.double()[where]
        ulps = apart[where]
        result.differing += len(where)
        result.max_ulp = max(result.max_ulp, int(ulps.max()))
        result.max_abs = max(result.max_abs, _find_largest(values[0] - values[1]))
        # A tensor that is iterated over becomes as many objects as it has elements.
        few = slice(_HANDFUL + 1 - len(result.handful))
        listed = (side[few].tolist() for side in (where, *values, ulps))
        for index, one, other, ulp in zip(*listed, strict=True):
            place = _unravel(start + first + index, result.shape)
            result.handful.append(Element(place, one, other, ulp))


def _unravel(element: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of an element that is counted along the rows.

    >>> _unravel(7, (2, 5)), _unravel(0, ())
    ((1, 2), ())
    """
    index = []
    for size in reversed(shape):
        element, at = divmod(element, size)
        index.append(at)
    return tuple(reversed(index))


def _measure_distances(
    result: TensorComparison, ours: torch.Tensor, theirs: torch.Tensor
) -> torch.Tensor:
    """How far each two elements are apart: ulp, or 0 and ``INCOMPARABLE`` (int64)."""
    if result.compared_in is None:
        return (ours != theirs) * INCOMPARABLE
    if result.in_blocks:
        pair = (ours, theirs) if result.types[0] == Q8_0_NAME else (theirs, ours)
        blocks = (side.view(-1, BLOCK) for side in pair)
        return _exceeds_block_error(*blocks).flatten() * INCOMPARABLE
    return count_ulps(ours.to(result.compared_in), theirs.to(result.compared_in))


def _exceeds_block_error(quantized: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Where numbers read from q8_0 blocks cannot be what ``plain`` became there (bool).

    Both are (rows, columns), any floating-point dtype. ``plain`` may itself be rounded once, to its
    dtype, from what was quantized.
    """
    magnitudes = plain.float().abs()
    rounding = compute_half_ulp(magnitudes.clone(), plain.dtype)
    allowed = rounding + compute_block_error(magnitudes + rounding)
    near = (quantized.double() - plain.double()).abs() <= allowed
    return ~(near & magnitudes.isfinite())


def _find_largest(gaps: torch.Tensor) -> float:
    """The largest magnitude of finite numbers, 0 where there is none."""
    finite = gaps[gaps.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def describe_difference(tensor: TensorComparison) -> Iterator[str]:
    """A difference in words: one line, and one for each element where they are a handful."""
    yield f"{tensor.name}: {' and '.join(dict.fromkeys(tensor.types))} {tensor.shape}"
    counted = tr(
        "{differing:,} of {elements:,} elements ({share:.2%})",
        differing=tensor.differing,
        elements=tensor.elements,
        share=tensor.share,
    )
    if tensor.in_blocks:
        share = tr("{counted} are not ", counted=counted) if tensor.differing else ""
        yield tr(
            "  {share}within the error of q8_0 blocks: at most {max_abs:.3g} absolute",
            share=share,
            max_abs=tensor.max_abs,
        )
        yield from _describe_elements(tensor)
        return
    if not tensor.differing:
        yield tr(
            "  equal in {name_compared_dtype}, the coarser of the two",
            name_compared_dtype=_name_compared_dtype(tensor),
        )
        return
    rounded = (
        tr(" in {name_compared_dtype}", name_compared_dtype=_name_compared_dtype(tensor))
        if tensor.types[0] != tensor.types[1]
        else ""
    )
    yield (
        tr(
            "  differ in {counted}: at most {ulps}{rounded}, {max_abs:.3g} absolute",
            counted=counted,
            ulps=format_ulps(tensor.max_ulp),
            rounded=rounded,
            max_abs=tensor.max_abs,
        )
    )
    yield from _describe_elements(tensor)


def _describe_elements(tensor: TensorComparison) -> Iterator[str]:
    """The elements that differ, where they are a handful."""
    if tensor.differing <= _HANDFUL:
        for e in tensor.handful:
            distance = "" if tensor.in_blocks else f" ({format_ulps(e.ulp)})"
            yield tr(
                "  {index}: {ours:.9g} and {theirs:.9g}{distance}",
                index=list(e.index),
                ours=e.ours,
                theirs=e.theirs,
                distance=distance,
            )


def _name_compared_dtype(tensor: TensorComparison) -> str:
    """The dtype in which ulp were counted."""
    return get_dtype_name(tensor.compared_in) if tensor.compared_in is not None else "integers"
