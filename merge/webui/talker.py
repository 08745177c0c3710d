"""Base and result of a merge, asked in one child process that all tabs share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from ..messages import tr
from .child import Child
from .languages import translate_to_all

# How long models stay in memory after the last question.
_IDLE_SECONDS = 600.0


class Talker:
    """Answers one question at a time; models stay loaded while the same ones are asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = Lock()
        self._child: Child | None = None
        self._models: tuple[str, ...] = ()
        self._numbers = itertools.count()
        self._asking: dict[str, tuple[Child, int]] = {}
        self._idle: Timer | None = None

    def ask(
        self, tab: str, models: Sequence[str], text: str, settings: Mapping[str, Any], language: str
    ) -> Iterator[dict[str, Any]]:
        """Yield the events of an answer, when those of other tabs have ended."""
        if not self._turn.acquire(blocking=False):
            yield {"event": "waiting"}
            self._turn.acquire()
        with self._question(tab, tuple(models), language) as (child, number):
            child.send({"number": number, "text": text, "settings": dict(settings)})
            for event in child.events():
                yield event
                if event["event"] == "answered":
                    return
                if event["event"] == "error":  # nothing can be asked of these models
                    break
            else:
                yield {"event": "error", "text": translate_to_all(_ENDED)}
            self._end_child()

    @contextmanager
    def _question(
        self, tab: str, models: tuple[str, ...], language: str
    ) -> Iterator[tuple[Child, int]]:
        is_done = False
        try:
            child, number = self._get_child(models, language), next(self._numbers)
            self._asking[tab] = child, number
            yield child, number
            is_done = True
        finally:
            self._asking.pop(tab, None)
            if not is_done:  # the tab was closed in the midst of an answer
                self._end_child()
            self._set_idle_timer()
            self._turn.release()

    def stop(self, tab: str) -> None:
        """End the answer that a tab waits for, after the word that is being written."""
        if tab in self._asking:
            child, number = self._asking[tab]
            child.send({"stop": number})

    def close(self) -> None:
        """Free the memory of the models."""
        if self._idle is not None:
            self._idle.cancel()
        self._end_child()

    def _get_child(self, models: tuple[str, ...], language: str) -> Child:
        if self._idle is not None:
            self._idle.cancel()
        if self._child is None or models != self._models:
            self._end_child()
            request = {"task": "chat", "language": language, "models": models}
            self._child, self._models = Child(self._folder, request), models
        return self._child

    def _set_idle_timer(self) -> None:
        self._idle = Timer(_IDLE_SECONDS, self._free_if_idle)
        self._idle.daemon = True
        self._idle.start()

    def _free_if_idle(self) -> None:
        if self._turn.acquire(blocking=False):
            self._end_child()
            self._turn.release()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.wait()


_ENDED = tr(
    "the program that answers has ended; perhaps there was not enough memory for the models"
)
