"""Runs killed at random points and resumed end in the bytes of an uninterrupted run."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from tests.kit.run import run_python
from tests.kit.stopped import Merging, contents, interrupted_at

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes that are killed are forked"),
]
# Until a run has removed what another has left, it opens and removes about twenty files.
POINTS = 25


def test_killed_and_resumed_runs_give_the_same_bytes() -> None:
    module = "tests.interruption.kill_many"
    told = run_python("-m", module, "--runs", 50, "--seed", 7, timeout=1500)
    assert told.returncode == 0, told.stdout + told.stderr
    last = told.stdout.splitlines()[-1]
    right, runs, kills, resumed, tensors, only_names = map(int, re.findall(r"\d+", last))
    assert (right, runs) == (50, 50)
    assert kills >= 50
    assert resumed > 20
    assert tensors > 100
    assert only_names > 0


def test_run_that_begins_anew_after_a_killed_one_may_be_killed_too(
    one: Merging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the first run's files have names, and only a journal says whose they are."""
    from tests.interruption.kill_many import counted, die_at, in_a_process

    def killed_at(point: int) -> int:
        def work() -> None:
            counted(one.out, die_at(point))
            one.merge(overwrite=True)

        return in_a_process(work)

    whole, left = one.whole(), one.folder / "left"
    with (
        interrupted_at(len(whole) // 2, one.out, monkeypatch),
        pytest.raises(KeyboardInterrupt, match="--resume"),
    ):
        one.merge()
    one.out.rename(left)
    for point in range(1, POINTS):
        shutil.copytree(left, one.out)
        assert killed_at(point)
        one.merge(overwrite=True)
        assert contents(one.out) == whole
        shutil.rmtree(one.out)
