"""Ctrl-C and SIGTERM: one message, the shell's exit code, and an end within two seconds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows sends no signals to one process"
)
WITHIN = 2.0
COMMAND = """
import sys, time
from pathlib import Path
from merge.commands.common import command_parser, run
from merge.staging import StagedFolder

def work(args):
    with StagedFolder(Path({folder!r})) as staged:
        staged.write("a", b"half")
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            {at_the_end}
    return 0

sys.exit(run(command_parser("test"), work, []))
"""
AT_ONCE, NEVER = "pass", "time.sleep(60)"


@contextmanager
def begun(folder: Path, at_the_end: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is writing to ``folder``, and does ``at_the_end`` when it is to stop."""
    text = COMMAND.format(folder=str(folder), at_the_end=at_the_end)
    with subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process


def ended_by(number: int, folder: Path, at_the_end: str = AT_ONCE) -> tuple[int, str, float]:
    """Exit code and message of a command that is sent a signal, and the seconds it took to end."""
    with begun(folder, at_the_end) as process:
        started = time.monotonic()
        process.send_signal(number)
        out, told = process.communicate(timeout=30)
        assert out == ""
        return process.returncode, told, time.monotonic() - started


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_command_in_order(tmp_path: Path, number: int, code: int) -> None:
    exit_code, told, seconds = ended_by(number, tmp_path)
    assert exit_code == code
    assert told == "interrupted: nothing was written under a final name\n"
    assert seconds < WITHIN
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_that_does_not_come_to_its_end_is_ended(
    tmp_path: Path, number: int, code: int
) -> None:
    exit_code, told, seconds = ended_by(number, tmp_path, NEVER)
    assert exit_code == code
    assert told.startswith("interrupted: ")
    assert "--resume" in told
    assert seconds < WITHIN
    assert "a" not in {path.name for path in tmp_path.iterdir()}


def test_second_signal_does_not_disturb_the_first(tmp_path: Path) -> None:
    with begun(tmp_path, "time.sleep(0.5)") as process:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.1)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 143
    assert told == "interrupted: nothing was written under a final name\n"
    assert list(tmp_path.iterdir()) == []
