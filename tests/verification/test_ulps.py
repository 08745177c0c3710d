"""Distances in units in the last place, against numpy's ``nextafter``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge.verification.ulps import INCOMPARABLE, choose_coarser, count_ulps, round_to_nearest

STEPS = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


@pytest.mark.parametrize("dtype", STEPS, ids=str)
@pytest.mark.parametrize("start", [0.0, 1.0, -1.0, 65504.0, 2.0**-24, -0.1])
def test_each_step_of_nextafter_is_one(dtype: torch.dtype, start: float) -> None:
    value = STEPS[dtype](start)
    low = value
    for _ in range(5):
        low = np.nextafter(low, STEPS[dtype](-np.inf))
    one, other = (torch.from_numpy(np.array([number])) for number in (value, low))
    assert int(count_ulps(one, other)) == int(count_ulps(other, one)) == 5


def test_what_is_no_number_of_steps_away() -> None:
    nan, inf = float("nan"), float("inf")
    one = torch.tensor([nan, nan, inf, inf, 65504.0, -0.0, 0.0], dtype=torch.float16)
    other = torch.tensor([nan, 1.0, inf, -inf, inf, 0.0, 0.0], dtype=torch.float16)
    assert count_ulps(one, other).tolist() == [0, INCOMPARABLE, 0, INCOMPARABLE, INCOMPARABLE, 1, 0]


def test_opposite_ends_of_float64_are_far_apart_and_not_negative() -> None:
    ends = torch.tensor([-1.7e308], dtype=torch.float64), torch.tensor([1.7e308]).double()
    ends = ends[0], -ends[0]
    assert int(count_ulps(*ends)) > 1 << 62


def test_the_coarser_dtype_has_fewer_digits() -> None:
    assert choose_coarser(torch.bfloat16, torch.float16) is torch.bfloat16
    assert choose_coarser(torch.float32, torch.float16) is torch.float16


def test_rounding_once_agrees_with_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    halves = torch.empty(200_000).normal_(0, 0.02, generator=generator).half().double()
    between = (halves + halves.half().view(torch.int16).add(1).view(torch.float16).double()) / 2
    near_ties = torch.cat([between, between * (1 + 2**-40), between * (1 - 2**-40)])
    few = torch.tensor([0.0, -0.0, 65519.9, 1e-9, -1e-9])
    values = torch.cat([near_ties, near_ties * 2**-12, near_ties * 2**-20, few])
    expected = values.numpy().astype(np.float16)
    rounded = round_to_nearest(values, torch.float16)
    assert np.array_equal(rounded.numpy().view(np.int16), expected.view(np.int16))
    assert not torch.equal(values.half(), rounded)  # rounding by way of float32 is not enough


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_once_keeps_what_both_dtypes_have(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    found = round_to_nearest(every.double(), dtype)
    assert torch.equal(found.isnan(), every.isnan())
    assert torch.equal(found[~found.isnan()], every[~every.isnan()])
