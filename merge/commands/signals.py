"""Ctrl-C and SIGTERM: the same orderly end, within two seconds whatever the process is doing."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
# An orderly end takes milliseconds; only a disk that is slow to take what it was given, or a
# library that is being loaded, take longer. Ending at once then loses no more than a power cut.
_PATIENCE = 1.0
# How often a signal is sent again that came at a bad moment, in seconds.
_ASK_AGAIN = 0.05
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
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
    asked, put_off = threading.Event(), threading.Event()
    number = signal.SIGINT

    def interrupt(received: int, frame: FrameType | None) -> None:
        nonlocal number
        number = signal.Signals(received)
        asked.set()
        if _imports(frame):
            put_off.set()
            return
        put_off.clear()
        for other in taken:
            signal.signal(other, signal.SIG_IGN)
        interruption = Interrupted()
        interruption.exit_code = 128 + number
        raise interruption

    def watch() -> None:
        asked.wait()
        end = time.monotonic() + _PATIENCE
        while not over.wait(_ASK_AGAIN):
            if time.monotonic() > end:
                print(_HURRIED, file=sys.stderr, flush=True)
                os._exit(128 + number)
            if put_off.is_set():
                _thread.interrupt_main(number)

    over = threading.Event()
    taken = _signals_left_to_us()
    before = {signum: signal.signal(signum, interrupt) for signum in taken}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        asked.set()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported, which some libraries do not survive halfway.

    NumPy's and torch's compiled parts turn an exception there into another one, or abort.
    """
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


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
