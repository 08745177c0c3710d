"""A group of jobs: equal rows go to one thread together; nobody waits for one that has left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import pytest
import torch

from merge.engines.group import Group, Member
from merge.engines.spans import Span
from merge.interruption import Interrupted
from merge.layouts.placement import PlacedTensor
from merge.tensors.threads import ComputePool
from tests.kit.in_memory import lazy

NAMES = ["a", "b", "c", "d"]
ROWS = torch.arange(8.0).reshape(4, 2)


@pytest.fixture
def pool() -> Iterator[ComputePool]:
    with ComputePool(2) as made:
        yield made


def make_span(name: str, calls: list[str] | None = None, who: str = "") -> Span:
    placed = PlacedTensor(name, lazy(ROWS), ())

    def read(start: int, stop: int, out: torch.Tensor) -> None:
        if calls is not None:
            calls.append(f"{who}{name}")
        out.copy_(ROWS[start:stop])

    return Span(0, placed, 0, 4, read)


def compute_all(
    member: Member, names: Sequence[str], calls: list[str] | None = None, who: str = ""
) -> int:
    """Compute tensors one after the other; return how many came as they should."""
    right = 0
    try:
        with member.computing(names) as submit:
            for name in names:
                rows = submit(make_span(name, calls, who), torch.empty(32, dtype=torch.uint8))
                right += torch.equal(rows.result(timeout=60), ROWS)
    finally:
        member.leave()
    return right


def test_equal_tensors_are_computed_one_after_the_other() -> None:
    calls: list[str] = []
    with ComputePool(1) as pool, ThreadPoolExecutor(2) as jobs:
        group = Group(2, pool)
        runs = [
            jobs.submit(compute_all, member, names, calls, who)
            for member, names, who in zip(
                group.members, (NAMES, NAMES[1:]), ("1", "2"), strict=True
            )
        ]
        assert [run.result(timeout=60) for run in runs] == [4, 3]
    pairs = [call[1:] for call in calls]
    assert sorted(pairs) == ["a", "b", "b", "c", "c", "d", "d"]
    assert pairs == sorted(pairs)


@pytest.mark.parametrize("other", [NAMES[::-1], ["c", "x", "a"], []])
def test_jobs_in_different_orders_end_all_the_same(pool: ComputePool, other: list[str]) -> None:
    with ThreadPoolExecutor(3) as jobs:
        group = Group(3, pool)
        orders = [NAMES, other, NAMES]
        runs = [
            jobs.submit(compute_all, member, names)
            for member, names in zip(group.members, orders, strict=True)
        ]
        assert [run.result(timeout=60) for run in runs] == [4, len(other), 4]


def test_job_that_never_begins_and_one_that_fails_are_not_waited_for(pool: ComputePool) -> None:
    with ThreadPoolExecutor(2) as jobs:
        group = Group(3, pool)
        group.members[0].leave()
        whole = jobs.submit(compute_all, group.members[1], NAMES)

        def fail() -> None:
            with group.members[2].computing(NAMES) as submit:
                submit(make_span("a"), torch.empty(32, dtype=torch.uint8)).result(timeout=60)
                raise ValueError

        failed = jobs.submit(fail)
        assert whole.result(timeout=60) == 4
        assert isinstance(failed.exception(timeout=60), ValueError)


def test_error_of_one_job_is_told_to_that_job_alone(pool: ComputePool) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("its own")

    with ThreadPoolExecutor(2) as jobs:
        group = Group(2, pool)

        def fail() -> None:
            span = Span(0, make_span("a").placed, 0, 4, refuse)
            with group.members[0].computing(NAMES) as submit:
                submit(span, torch.empty(32, dtype=torch.uint8)).result(timeout=60)

        failed = jobs.submit(fail)
        whole = jobs.submit(compute_all, group.members[1], NAMES)
        assert whole.result(timeout=60) == 4
        assert "its own" in str(failed.exception(timeout=60))


def test_stop_interrupts_jobs_that_wait_and_those_that_go_on(pool: ComputePool) -> None:
    group = Group(2, pool)
    with ThreadPoolExecutor(1) as jobs, group.members[0].computing(NAMES) as submit:
        waiting = submit(make_span("a"), torch.empty(32, dtype=torch.uint8))
        assert not wait_for([waiting], timeout=0).done
        group.stop()
        assert isinstance(waiting.exception(timeout=60), Interrupted)
        later = jobs.submit(compute_all, group.members[1], NAMES)
        assert isinstance(later.exception(timeout=60), Interrupted)
