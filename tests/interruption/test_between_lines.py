"""Ctrl-C between any two lines of a command: an orderly end, and a resume to the same bytes."""

from __future__ import annotations

import os

import pytest

from tests.kit.run import run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands are forked"),
]

MODULE = "tests.interruption.between_lines"


@pytest.mark.parametrize("seed", [11, 12])
def test_command_interrupted_between_two_lines_ends_in_order_and_resumes(seed: int) -> None:
    told = run_python("-m", MODULE, "--runs", 39, "--seed", seed, timeout=900)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1] == "39 of 39 interrupted commands ended as they should"
