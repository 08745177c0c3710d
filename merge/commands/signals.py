"""Ctrl-C and SIGTERM: the same orderly end, within two seconds whatever the process is doing."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
# An orderly end takes milliseconds; only a disk that is slow to take what it was given, or a
# library that is being loaded, take longer. Ending at once then loses no more than a power cut.
_PATIENCE = 1.2
_HURRIED = "interrupted: ended without waiting; --resume goes on where that is possible"


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. As in every shell, that gives exit code 128 + number.

    ``args`` may hold what to tell about the state of things.
    """

    exit_code = INTERRUPTED


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise ``Interrupted`` in the block at the first signal, and end the process soon after it.

    Further signals change nothing. Signals that somebody else handles or ignores (``nohup``, a
    program that calls a command as a function) are left to them.
    """
    asked = threading.Event()
    code = INTERRUPTED

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal code
        code = 128 + number
        for other in taken:
            signal.signal(other, signal.SIG_IGN)
        asked.set()
        interruption = Interrupted()
        interruption.exit_code = code
        raise interruption

    def watch() -> None:
        asked.wait()
        if not over.wait(_PATIENCE):
            print(_HURRIED, file=sys.stderr, flush=True)
            os._exit(code)

    over = threading.Event()
    taken = _signals_left_to_us()
    before = {number: signal.signal(number, interrupt) for number in taken}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_at_once(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which takes half a second with torch.

    As Python does, turn the code into 120 where what was said can't be delivered.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code)


def _signals_left_to_us() -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    return [number for number, handler in usual.items() if signal.getsignal(number) is handler]
