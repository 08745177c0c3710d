"""A tiny merge measured on one and two processors."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.cores import HEADING
from tests.kit.run import run_python

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("taskset") is None, reason="needs Linux and taskset"
)


def test_each_number_of_processors_is_measured_and_missing_ones_are_named(
    tmp_path: Path,
) -> None:
    there = len(os.sched_getaffinity(0))
    words = ["--shape", "tiny", "--runs", "1", "--work_dir", str(tmp_path)]
    words += ["--output", str(tmp_path), "--processors", "1", str(there + 1)]
    # In a process of its own: the kernel counts the peak of the one that starts a command, too.
    told = run_python("-m", "benchmarks.cores", *words)
    assert told.returncode == 0, told.stderr
    assert f"not here, with {there} processors: {there + 1}" in told.stdout
    (path,) = tmp_path.glob("cores-*.json")
    heading, *rows = json.loads(path.read_text(encoding="utf-8"))["records"]["cores"]["table"]
    assert tuple(heading) == HEADING
    assert [row[0] for row in rows] == ["1"]
    peak = float(rows[0][HEADING.index("peak MiB")].split(" / ")[0])
    assert 100 < peak < 1000
    assert not list(tmp_path.glob("tmp*"))
