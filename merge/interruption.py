"""Ctrl-C and SIGTERM: a signal sets a flag, and work ends where everything is consistent.

An exception that a signal raises can fall between any two lines, also into the midst of a rename or
of the clean-up itself. So the handler only notes the signal; code that reads, computes or writes
calls ``raise_if_interrupted`` between two steps, in any thread.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType

INTERRUPTED = 130
_OVER = 0
_HURRIED = b"interrupted: ended without waiting; --resume goes on where that is possible\n"


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. As in every shell, that gives exit code 128 + number.

    ``args`` may hold what to tell about the state of things.
    """

    exit_code = INTERRUPTED


class _Request:
    """The first signal that came, and whether somebody looks at it.

    Only a handler in the main thread writes to it, so it needs no lock.
    """

    number: int | None = None
    is_watched = False


_request = _Request()


def raise_if_interrupted() -> None:
    """Raise ``Interrupted`` when a signal has asked for the end.

    To be called wherever an exception does no harm; that is all that a signal can interrupt.
    """
    _raise_for(_request.number)


def _raise_for(number: int | None) -> None:
    if number is not None:
        interruption = Interrupted()
        interruption.exit_code = 128 + number
        raise interruption


@contextmanager
def deferred_signals(grace_seconds: float | None = None) -> Iterator[None]:
    """Note SIGINT in the block, and SIGTERM in a command; ``raise_if_interrupted`` raises them.

    With ``grace_seconds`` the process is this program's own: it ends that long after the first
    signal where no orderly end was reached (a library that is being imported, a slow disk), and at
    once with a second Ctrl-C. Files are then as after ``kill -9``. Without, the process is somebody
    else's: a second Ctrl-C raises ``KeyboardInterrupt`` at once, and SIGTERM does what it does.

    In a block within another one, in other threads than the main one, and of signals that somebody
    else handles or ignores (``nohup``), nothing is changed.
    """
    taken = _signals_left_to_us(is_command=grace_seconds is not None)
    if _request.is_watched or not taken:
        yield
        return
    # Of the classes by which threads wait only this one may be used in a handler: an Event's lock
    # may be held by the very code that the handler interrupts.
    events: SimpleQueue[int] = SimpleQueue()

    def handle(number: int, _: FrameType | None) -> None:
        first, _request.number = _request.number, _request.number or number
        events.put(number)
        if first == number == signal.SIGINT:
            if grace_seconds is not None:
                exit_at_once(128 + number)
            raise KeyboardInterrupt

    def watch(seconds: float) -> None:
        number = event = events.get()
        end = time.monotonic() + seconds
        while event != _OVER:
            try:
                event = events.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                exit_at_once(128 + number)

    if grace_seconds is not None:
        threading.Thread(target=watch, args=(grace_seconds,), daemon=True).start()
    _request.number, _request.is_watched = None, True
    before = {number: signal.signal(number, handle) for number in taken}
    try:
        yield
    finally:
        events.put(_OVER)
        for number, handler in before.items():
            signal.signal(number, handler)
        came_first, _request.number, _request.is_watched = _request.number, None, False
    _raise_for(came_first)


def exit_at_once(code: int) -> None:
    """Say so and end the process, whatever its other threads are waiting for."""
    os.write(2, _HURRIED)  # print would wait for the main thread, which may hold the stream
    os._exit(code)


def _signals_left_to_us(is_command: bool) -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []
    usual: dict[signal.Signals, object] = {signal.SIGINT: signal.default_int_handler}
    if is_command:
        usual[signal.SIGTERM] = signal.SIG_DFL
    return [number for number, handler in usual.items() if signal.getsignal(number) is handler]
