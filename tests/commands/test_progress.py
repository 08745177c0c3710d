"""Progress on a terminal and elsewhere: what is done, how far, how fast, how long."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys

import pytest

from tests.kit.run import ROOT, quick_environment, run_python

_TWO = """
import time
from merge.commands.progress import progress_bar
with progress_bar(False, "checking the base") as first, progress_bar(False, "merging") as second:
    for show in (first, second):
        for step in range(1, 21):
            time.sleep(0.03)
            show(step * 50_000_000, 1_000_000_000)
        show(1_000_000_000, 1_000_000_000)
"""


def test_elsewhere_each_tenth_is_a_line_with_rate_and_time_left() -> None:
    lines = run_python("-c", _TWO).stderr.splitlines()
    assert len(lines) == 20
    assert [line.partition(":")[0] for line in lines] == [
        *["checking the base"] * 10,
        *["merging"] * 10,
    ]
    told = re.compile(r"merging: 90 % \(900\.0 MB of 1\.0 GB, [\d.]+ [kMG]?B/s, 0:\d\d left\)")
    assert told.fullmatch(lines[-2])


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_on_a_terminal_the_second_bar_begins_when_the_first_has_ended() -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = quick_environment(TERM="dumb")
    process = subprocess.Popen(
        [sys.executable, "-c", _TWO], cwd=ROOT, env=environment, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    first, second = [line for line in shown.decode().split("\n") if line.strip()]
    last = [line.split("\r")[-1 if not line.endswith("\r") else -2] for line in (first, second)]
    assert last[0].startswith("checking the base: 100%")
    assert last[1].startswith("merging: 100%")
    assert "merging" not in first
    assert all("B/s" in line for line in last)
