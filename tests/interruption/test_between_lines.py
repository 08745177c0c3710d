"""Ctrl-C between any two lines of a command: an orderly end, and a resume to the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kit.run import ROOT, quick_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands are forked"),
]

MODULE = "tests.interruption.between_lines"


@pytest.mark.parametrize("seed", [11, 12])
def test_command_interrupted_between_two_lines_ends_in_order_and_resumes(seed: int) -> None:
    told = subprocess.run(
        [sys.executable, "-m", MODULE, "--runs", "39", "--seed", str(seed)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=ROOT,
        env=quick_environment(),
        timeout=900,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1] == "39 of 39 interrupted commands ended as they should"
