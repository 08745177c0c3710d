"""Runs killed at random points and resumed end in the bytes of an uninterrupted run."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT, quick_environment


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes that are killed are forked")
def test_killed_and_resumed_runs_give_the_same_bytes() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.interruption.many", "--runs", "50", "--seed", "7"],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=ROOT,
        env=quick_environment(),
        timeout=300,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    last = told.stdout.splitlines()[-1]
    right, runs, kills, went_on, tensors, only_names = map(int, re.findall(r"\d+", last))
    assert (right, runs) == (50, 50)
    assert kills >= 50
    assert went_on > 20
    assert tensors > 100
    assert only_names > 0
