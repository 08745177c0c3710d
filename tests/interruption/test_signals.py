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

from merge import interruption
from tests.kit.run import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows sends no signals to one process"
)
WITHIN = 2.0
COMMAND = """
import sys, time
from pathlib import Path
from merge.commands.common import command_parser, run
from merge.interruption import raise_if_interrupted
from merge.output.staged_folder import StagedFolder

def work(args):
    with StagedFolder(Path({folder!r})) as staged:
        staged.write("a", b"half")
        try:
            print("begun", flush=True)
            while True:
                raise_if_interrupted()
                time.sleep(0.01)
        finally:
            {at_the_end}
    return 0

sys.exit(run(command_parser("test"), work, []))
"""
IMPORTING = """
import sys
from merge.commands.common import command_parser, run

def work(args):
    import takes_long
    print("imported", flush=True)
    import time
    from merge.interruption import raise_if_interrupted
    while True:
        raise_if_interrupted()
        time.sleep(0.01)

sys.path.insert(0, {folder!r})
sys.exit(run(command_parser("test"), work, []))
"""
# As NumPy's compiled part does with an exception in the midst of its import.
TAKES_LONG = """
import time
print("begun", flush=True)
try:
    time.sleep({seconds})
except BaseException as error:
    raise ImportError("cannot load module more than once per process") from error
"""
AT_ONCE, NEVER = "pass", "time.sleep(60)"


@contextmanager
def begun(folder: Path, at_the_end: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is writing to ``folder``, and does ``at_the_end`` when it is to stop."""
    with started(COMMAND.format(folder=str(folder), at_the_end=at_the_end)) as process:
        yield process


@contextmanager
def started(text: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that has said ``begun``."""
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


@pytest.mark.parametrize(("seconds", "imported"), [(0.5, "imported\n"), (60, "")])
def test_signal_while_a_library_is_loaded_waits_for_it_but_not_long(
    tmp_path: Path, seconds: float, imported: str
) -> None:
    (tmp_path / "takes_long.py").write_text(TAKES_LONG.format(seconds=seconds), encoding="utf-8")
    with started(IMPORTING.format(folder=str(tmp_path))) as process:
        begun_at = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, imported)
    assert told.startswith("interrupted: ")
    assert told.count("\n") == 1
    assert time.monotonic() - begun_at < WITHIN


PATIENT = """
from merge.commands import common
common._GRACE_SECONDS = 1000.0
"""
ENDING = 'print("ending", flush=True); time.sleep(60)'


def test_second_ctrl_c_ends_at_once_whatever_the_first_waits_for(tmp_path: Path) -> None:
    text = PATIENT + COMMAND.format(folder=str(tmp_path), at_the_end=ENDING)
    with started(text) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.startswith("interrupted: ended without waiting")
    assert "a" not in {path.name for path in tmp_path.iterdir()}


DONE = """
import os, signal, sys
from merge.commands.common import command_parser, run

def work(args):
    os.kill(os.getpid(), signal.SIGINT)
    return 0

print("begun", flush=True)
sys.exit(run(command_parser("test"), work, []))
"""


def test_command_that_was_done_when_the_signal_came_says_so() -> None:
    with started(DONE) as process:
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "interrupted: everything was done by then\n"


def test_digest_that_was_interrupted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hashlib import sha256

    from merge.checksums import file_digests as checksums

    path = tmp_path / "file"
    path.write_bytes(b"content")
    with monkeypatch.context() as patch:
        patch.setattr(interruption._request, "number", signal.SIGINT)
        with pytest.raises(interruption.Interrupted):
            checksums.get_file_digest(path)
    assert checksums.get_file_digest(path) == sha256(b"content").hexdigest()
