"""What the quick look lets pass: nothing that float64 would not, and all that float32 may give.

The bound of each element is computed here as docs/reliability.md states it, from exact numbers.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.verification.adapters import Product
from merge.verification.elementwise import TensorResult, check_tensor, make_probe_vectors
from merge.verification.exactness import Exactness
from merge.verification.expected_tensor import ExpectedTensor, RowSegment
from merge.verification.reference import AddProduct, Round, compute_half_ulp
from merge.verification.ulps import round_to_nearest
from tests.kit.in_memory import lazy

NAME = "w"
DTYPES = [torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Sum:
    """A base and the factors of adapters, (B, A, scaling) each."""

    base: torch.Tensor
    products: list[tuple[torch.Tensor, torch.Tensor, float]]
    rounded_to: torch.dtype | None = None

    def exact(self) -> torch.Tensor:
        values = self.base.double()
        for b, a, scaling in self.products:
            values = values.addmm(b.double(), a.double(), alpha=scaling)
        return values

    def merged(self, dtype: torch.dtype) -> torch.Tensor:
        values = self.base.float()
        for b, a, scaling in self.products:
            values = values.addmm(b.float(), a.float(), alpha=scaling)
        return values.to(dtype)

    def bound(self, dtype: torch.dtype) -> torch.Tensor:
        """How far elements may be off: what float32 may lose, and half a unit; at least."""
        lost, sums = torch.zeros(self.base.shape, dtype=torch.float64), self.base.double()
        for b, a, scaling in self.products:
            norms = b.double().norm(dim=1, keepdim=True) * a.double().norm(dim=0)
            before, sums = sums, sums.addmm(b.double(), a.double(), alpha=scaling)
            magnitudes = torch.maximum(before.abs(), sums.abs()) + abs(scaling) * norms
            lost += (a.shape[0] + 3) * 2.0**-24 * magnitudes
        reach = (sums.abs() + lost).float() * (1 + 2.0**-20)
        return (lost + compute_half_ulp(reach, dtype).double()) * (1 + 2.0**-20)

    def check(self, result: torch.Tensor) -> TensorResult:
        products = [AddProduct(Product(lazy(a), lazy(b), s)) for b, a, s in self.products]
        rounding = [Round(self.rounded_to)] if self.rounded_to is not None else []
        steps = (*products, *rounding)
        segment = RowSegment(0, len(self.base), lazy(self.base), steps)
        recipe = ExpectedTensor((segment,), self.base.shape[1:])
        with ThreadPoolExecutor(2) as pool:
            return check_tensor(NAME, lazy(result), recipe, None, pool, lambda _: None)


def make_sum(
    shape: tuple[int, int], ranks: list[int], scale: float, dtype: torch.dtype, seed: int
) -> Sum:
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    base = (random(*shape) * 0.02).to(dtype)
    products = [(random(shape[0], r) * scale, random(r, shape[1]) * scale, 2.0) for r in ranks]
    return Sum(base, products)


def move_beyond(value: float, bound: float, direction: int, dtype: torch.dtype) -> float:
    """The first number of ``dtype`` that is further from ``value`` than ``bound``."""
    number = torch.tensor(value, dtype=torch.float64).to(dtype)
    bits = number.view(torch.int16)
    step = direction if value > 0 else -direction
    while not abs(float(number) - value) > bound or (float(number) - value) * direction < 0:
        bits += step
    return float(number)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 700),
    ranks=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    scale=st.sampled_from([1e-5, 0.01, 0.1, 1.0]),
    dtype=st.sampled_from(DTYPES),
    base_dtype=st.sampled_from([*DTYPES, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_whatever_float32_gives_is_right(
    rows: int,
    columns: int,
    ranks: list[int],
    scale: float,
    dtype: torch.dtype,
    base_dtype: torch.dtype,
    seed: int,
) -> None:
    made = make_sum((rows, columns), ranks, scale, base_dtype, seed)
    result = made.merged(dtype)
    checked = made.check(result)
    assert checked.is_within_tolerance
    assert checked.exactness == Exactness.of(result, round_to_nearest(made.exact(), dtype))


@settings(max_examples=30, deadline=None)
@given(
    columns=st.sampled_from([5, 64, 1000, 2048]),
    ranks=st.lists(st.integers(1, 70), min_size=1, max_size=2),
    scale=st.sampled_from([1e-3, 0.02, 0.2]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_every_element_just_beyond_its_bound_is_found(
    columns: int, ranks: list[int], scale: float, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    made = make_sum((150, columns), ranks, scale, dtype, seed)
    result, exact, bound = made.merged(dtype), made.exact(), made.bound(dtype)
    cells = st.tuples(st.integers(0, 149), st.integers(0, columns - 1))
    places = data.draw(st.lists(cells, min_size=1, max_size=6, unique=True))
    direction = data.draw(st.sampled_from([-1, 1]))
    for place in places:
        value = move_beyond(float(exact[place]), float(bound[place]), direction, dtype)
        result[place] = value
    checked = made.check(result)
    assert checked.failed == len(places)
    assert checked.first is not None
    assert checked.first[0] == min(places)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [512, 4096])
def test_one_wrong_element_among_many_is_found(columns: int, dtype: torch.dtype) -> None:
    """In every row of a matrix of several spans, one after another."""
    made = make_sum((800, columns), [8], 0.01, dtype, 1)
    result, exact, bound = made.merged(dtype), made.exact(), made.bound(dtype)
    for row in range(0, 800, 53):
        place = row, (row * 131) % columns
        wrong = result.clone()
        wrong[place] = move_beyond(float(exact[place]), float(bound[place]), 1, dtype)
        checked = made.check(wrong)
        assert (checked.failed, checked.first and checked.first[0]) == (1, place)


@pytest.mark.parametrize("rounded_to", DTYPES)
def test_rounding_before_the_last_one_is_regarded(rounded_to: torch.dtype) -> None:
    """As of sums that a container keeps in its own dtype, which may be the same."""
    made = replace(make_sum((64, 512), [8], 0.01, rounded_to, 5), rounded_to=rounded_to)
    result = made.merged(rounded_to).half()
    assert made.check(result).is_within_tolerance
    result[3, 4] += result.abs().max() / 16
    checked = made.check(result)
    assert (checked.failed, checked.first and checked.first[0]) == (1, (3, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0, -1e-7, 65504.0])
@pytest.mark.parametrize("side", ["result", "base"])
def test_extreme_numbers_on_one_side_are_found(value: float, side: str) -> None:
    made = make_sum((40, 300), [8], 0.01, torch.float16, 2)
    result = made.merged(torch.float16)
    (result if side == "result" else made.base)[17, 123] = value
    assert made.check(result).failed == 1


def test_element_within_its_bound_that_is_not_the_nearest_is_counted() -> None:
    """Where summands cancel, float32 may lose more than a unit of what is left."""
    made = make_sum((64, 512), [16], 0.5, torch.float16, 3)
    made.base.copy_((made.base.double() - made.exact()).half())
    result = made.merged(torch.float16)
    expected = round_to_nearest(made.exact(), torch.float16)
    near = (result.double() - made.exact()).abs() < made.bound(torch.float16) / 2
    result.view(torch.int16)[near & (result != 0)] ^= 1
    still = (result.double() - made.exact()).abs() <= made.bound(torch.float16)
    result = torch.where(still, result, expected)
    assert made.check(result).exactness == Exactness.of(result, expected)


@pytest.mark.parametrize("share", [0.15, 0.9])
def test_random_sums_are_compared_where_each_element_is_nearest(share: float) -> None:
    """Each element is what its value rounds to, but all are off with the signs of one vector."""
    made = make_sum((64, 2048), [4], 0.001, torch.float32, 4)
    result = made.merged(torch.float16)
    half = compute_half_ulp(result.float().abs() * (1 - 2.0**-23), torch.float16)
    added = made.exact() - made.base.double()
    signs = make_probe_vectors(NAME, 2048)[1]
    made.base.copy_((result.double() - added - share * half.double() * signs).float())
    checked = made.check(result)
    assert checked.failed == 0
    assert checked.exactness.share == 1
    assert checked.failed_rows == (64 if share * 2048**0.5 > 9 else 0)
