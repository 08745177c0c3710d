"""Distances in units in the last place, against numpy's ``nextafter``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge.verification.ulps import BEYOND, coarser, distances

STEPS = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


@pytest.mark.parametrize("dtype", STEPS, ids=str)
@pytest.mark.parametrize("start", [0.0, 1.0, -1.0, 65504.0, 2.0**-24, -0.1])
def test_each_step_of_nextafter_is_one(dtype: torch.dtype, start: float) -> None:
    value = STEPS[dtype](start)
    low = value
    for _ in range(5):
        low = np.nextafter(low, STEPS[dtype](-np.inf))
    one, other = (torch.from_numpy(np.array([number])) for number in (value, low))
    assert int(distances(one, other)) == int(distances(other, one)) == 5


def test_what_is_no_number_of_steps_away() -> None:
    nan, inf = float("nan"), float("inf")
    one = torch.tensor([nan, nan, inf, inf, 65504.0, -0.0, 0.0], dtype=torch.float16)
    other = torch.tensor([nan, 1.0, inf, -inf, inf, 0.0, 0.0], dtype=torch.float16)
    assert distances(one, other).tolist() == [0, BEYOND, 0, BEYOND, BEYOND, 1, 0]


def test_opposite_ends_of_float64_are_far_apart_and_not_negative() -> None:
    ends = torch.tensor([-1.7e308], dtype=torch.float64), torch.tensor([1.7e308]).double()
    ends = ends[0], -ends[0]
    assert int(distances(*ends)) > 1 << 62


def test_the_coarser_dtype_has_fewer_digits() -> None:
    assert coarser(torch.bfloat16, torch.float16) is torch.bfloat16
    assert coarser(torch.float32, torch.float16) is torch.float16
