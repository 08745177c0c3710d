"""No false alarm on what torch computes in float32, and how much of one unit off is noticed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ulp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.verification.adapters import Product
from merge.verification.elementwise import TensorResult, check_tensor
from merge.verification.exactness import Exactness
from merge.verification.expected_tensor import ExpectedTensor, RowSegment
from merge.verification.reference import AddProduct, compute_half_ulp
from merge.verification.ulps import INCOMPARABLE, round_to_nearest
from tests.kit.in_memory import lazy


@dataclass(frozen=True)
class Case:
    base: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    def merged(self, dtype: torch.dtype) -> torch.Tensor:
        sums = torch.addmm(self.base.float(), self.b.float(), self.a.float(), alpha=self.scaling)
        return sums.to(dtype)

    def exact(self) -> torch.Tensor:
        return self.base.double().addmm(self.b.double(), self.a.double(), alpha=self.scaling)

    def check(self, result: torch.Tensor) -> TensorResult:
        step = AddProduct(Product(lazy(self.a), lazy(self.b), self.scaling))
        base = lazy(self.base)
        recipe = ExpectedTensor((RowSegment(0, base.rows, base, (step,)),), base.shape[1:])
        with ThreadPoolExecutor(1) as pool:
            return check_tensor("w", lazy(result), recipe, base, pool, lambda _: None)


def case(rows: int, columns: int, rank: int, scale: float, scaling: float, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(scale).half()

    return Case(random(rows, columns), random(rank, columns), random(rows, rank), scaling)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    rank=st.integers(1, 130),
    scale=st.sampled_from([1e-6, 1e-3, 0.02, 1.0, 20.0]),
    scaling=st.floats(-8, 8),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_what_float32_gives_is_right(
    rows: int,
    columns: int,
    rank: int,
    scale: float,
    scaling: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    made = case(rows, columns, rank, scale, scaling, seed)
    result = made.merged(dtype)
    if result.isfinite().all():
        checked = made.check(result)
        assert checked.is_within_tolerance
        assert checked.exactness == Exactness.of(result, round_to_nearest(made.exact(), dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("found", ["next", float("nan"), float("inf")])
def test_value_just_below_a_power_of_two_is_not_held_against_the_larger_unit_above_it(
    dtype: torch.dtype, found: str | float
) -> None:
    one = torch.ones(40, 64, dtype=dtype)
    made = Case(one, torch.ones(1, 64).half(), -torch.ones(40, 1).half(), 2.0**-26)
    assert made.check(one).exactness == Exactness(one.numel(), one.numel())
    below = 1 - torch.finfo(dtype).eps / 2 if found == "next" else float(found)
    result = one.clone()
    result[17, 3] = below
    expected = Exactness(one.numel(), one.numel() - 1, 1 if found == "next" else INCOMPARABLE)
    assert made.check(result).exactness == expected


@pytest.mark.parametrize("scaling", [1e-12, 1e-22, 1e-34, 4.5e-97])
def test_sums_too_small_for_float32_are_right(scaling: float) -> None:
    made = case(22, 40, 3, 1e-6, scaling, 3)
    made.base[::2] = 0
    assert made.check(made.merged(torch.float32)).is_within_tolerance


@pytest.mark.parametrize(
    ("dtype", "rank", "share"),
    [(torch.float16, 8, 0.99), (torch.float16, 64, 0.9), (torch.bfloat16, 64, 0.98)],
    ids=str,
)
def test_one_unit_off_is_noticed_nearly_everywhere(
    dtype: torch.dtype, rank: int, share: float
) -> None:
    made = case(64, 1024, rank, 0.02, 2.0, 1)
    result = made.merged(dtype)
    assert made.check(result).is_within_tolerance
    result.view(torch.int16).bitwise_xor_(1)
    found = made.check(result)
    assert found.failed / found.elements > share


def test_what_was_added_is_measured() -> None:
    made = case(64, 256, 8, 0.02, 2.0, 1)
    result = Case(made.base, made.a, made.b, 3.0).merged(torch.float16)
    assert made.check(result).share_added == pytest.approx(1.5, abs=0.05)


def test_distance_from_float64_is_counted() -> None:
    made = case(64, 96, 8, 0.02, 2.0, seed=5)
    exact = made.base.double() + 2.0 * made.b.double() @ made.a.double()
    result = round_to_nearest(exact, torch.float16)
    assert made.check(result).exactness == Exactness(64 * 96, 64 * 96, 0)
    result.view(torch.int16)[3, 7] += 2
    result[5, 1] = torch.nan
    assert made.check(result).exactness == Exactness(64 * 96, 64 * 96 - 2, INCOMPARABLE)
    result[5, 1] = exact[5, 1]
    assert made.check(result).exactness.max_ulp == 2


def test_half_a_unit_is_python_s() -> None:
    values = torch.tensor([1.0, 1.5, 2.0, 1000.0, 3e-5])
    exact = [ulp(float(value)) / 2 * 2.0 ** (52 - 10) for value in values[:4]]
    assert compute_half_ulp(values.clone(), torch.float16)[:4].tolist() == exact
    assert (
        float(compute_half_ulp(values[4:].clone(), torch.float16)) == 2.0**-25
    )  # below the normal ones
