"""When how many bytes were done: the pace of a run, in as few points as a curve needs."""

from __future__ import annotations

import time
from threading import Lock

from ..settings import OnProgress

_MOST_POINTS = 400


class Pace:
    """Notes progress over time; of more than a few hundred points every second one is dropped.

    ``started`` is a time of ``time.monotonic``, when the job began.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.points: list[tuple[float, int]] = []
        self._interval = 0.0
        self._lock = Lock()

    def note(self, done: int) -> None:
        """Note that so many bytes are done by now."""
        now = time.monotonic() - self.started
        with self._lock:
            if self.points and now - self.points[-1][0] < self._interval:
                return
            self.points.append((now, done))
            if len(self.points) > _MOST_POINTS:
                self.points = self.points[::2]
                self._interval = max(2 * self._interval, (now - self.points[0][0]) / _MOST_POINTS)

    def following(self, on_progress: OnProgress | None) -> OnProgress:
        """``on_progress``, after which each call is noted here too."""

        def progress(done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(done, total)
            self.note(done)

        return progress

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self.started
