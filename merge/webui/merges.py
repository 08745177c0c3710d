"""The merges of a page: one at a time, each in a child process, watched by the tab it is for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition
from typing import Any, Literal

from ..errors import UsageError
from ..messages import tr
from .child import Child
from .languages import Texts, translate_to_all
from .root import Root

State = Literal["waiting", "running", "done", "cancelled", "failed"]
_OVER = ("done", "cancelled", "failed")
# How often the time left is told anew while no byte is written.
_TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a merge is; ``facts``, ``warnings`` and ``error`` are for people."""

    state: State = "waiting"
    is_cancelling: bool = False
    done: int = 0
    total: int = 0
    started: float | None = None
    facts: tuple[Texts, ...] = ()
    warnings: tuple[Texts, ...] = ()
    error: Texts | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in _OVER

    def seconds_left(self, now: float) -> float | None:
        """At the pace since the first byte; None before there is one."""
        if self.started is None or not self.done or now - self.started < 1:
            return None
        return (self.total - self.done) * (now - self.started) / self.done


@dataclass(eq=False)
class Merge:
    """One merge. ``tab`` is the session that watches it, None when that was closed."""

    output: Path
    tab: str | None
    progress: Progress = field(default_factory=Progress)
    _changed: Condition = field(default_factory=Condition)
    _child: Child | None = None

    def watch(self) -> Iterator[Progress]:
        """Yield its progress whenever that changes, and every second, until it is over."""
        shown = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.progress is not shown, _TICK_SECONDS)  # noqa: B023
                shown = self.progress
            yield shown
            if shown.is_over:
                return

    def cancel(self) -> None:
        """Interrupt it where ``resume`` can go on; one that waits is over at once."""
        with self._changed:
            state = "cancelled" if self.progress.state == "waiting" else self.progress.state
            self.progress = replace(self.progress, is_cancelling=True, state=state)
            self._changed.notify_all()
            if self._child is not None:
                self._child.interrupt()

    def run(self, root: Path, request: Mapping[str, Any]) -> None:
        """Run it in a child process, in the thread that calls, unless it is cancelled already."""
        with self._changed:
            if self.progress.is_over:
                return
            self._child = child = Child(root, request)
        self._set(state="running")
        for event in child.events():
            self._take(event)
        child.wait()
        if not self.progress.is_over:
            state = "cancelled" if self.progress.is_cancelling else "failed"
            self._set(state=state, error=translate_to_all(tr("the merge ended without a word")))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "progress":
            self._set(started=self.progress.started or time.monotonic(), **event)
        elif kind == "done":
            texts = tuple(event["facts"]), tuple(event["warnings"])
            self._set(state="done", facts=texts[0], warnings=texts[1])
        elif kind == "cancelled":
            self._set(state="cancelled")
        elif kind == "error":
            self._set(state="failed", error=event["text"])

    def _set(self, **values: Any) -> None:
        with self._changed:
            self.progress = replace(self.progress, **values)
            self._changed.notify_all()


class Merges:
    """All merges that this page has begun and that are not over."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._pool = ThreadPoolExecutor(1)
        self._going_on: list[Merge] = []

    def begin(self, keywords: Mapping[str, Any], tab: str, language: str) -> Merge:
        """Begin a merge, or let it wait for the one before it.

        Raises ``UsageError`` when one into the same folder is not over.
        """
        output = Path(keywords["output_dir"])
        if any(merge.output == output for merge in self.find()):
            raise UsageError(
                tr("a merge into that folder is going on"),
                file=output,
                remedy=tr("wait for its end, or cancel it in its own tab"),
            )
        if self.of_tab(tab) is not None:
            raise UsageError(
                tr("a merge of this tab is going on"),
                remedy=tr("wait for its end, cancel it, or open another tab"),
            )
        merge = Merge(output, tab)
        self._going_on.append(merge)
        request = {"task": "merge", "language": language, "merge": dict(keywords)}
        self._pool.submit(merge.run, self._root.folder, request)
        return merge

    def find(self) -> list[Merge]:
        """Those that are not over."""
        self._going_on = [merge for merge in self._going_on if not merge.progress.is_over]
        return self._going_on

    def of_tab(self, tab: str | None) -> Merge | None:
        """The one that a tab watches; with None one whose tab was closed."""
        return next((merge for merge in self.find() if merge.tab == tab), None)

    def adopt(self, tab: str) -> Merge | None:
        """Let a tab watch one whose own tab was closed, if there is one."""
        merge = self.of_tab(None)
        if merge is not None:
            merge.tab = tab
        return merge

    def leave(self, tab: str) -> None:
        """A tab was closed: its merge goes on, for another tab to watch."""
        for merge in self.find():
            if merge.tab == tab:
                merge.tab = None

    def close(self) -> None:
        """Interrupt all of them, and wait until their files are in order."""
        for merge in self.find():
            merge.cancel()
        self._pool.shutdown()


def plan(root: Root, keywords: Mapping[str, Any], language: str) -> dict[str, Any]:
    """Plan a merge in a child process; return its last event: ``planned`` or ``error``."""
    child = Child(root.folder, {"task": "plan", "language": language, "merge": dict(keywords)})
    events = list(child.events())
    child.wait()
    if events:
        return events[-1]
    return {"event": "error", "text": translate_to_all(tr("planning ended without a word"))}
