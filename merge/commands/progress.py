"""Progress in bytes: a bar on a terminal or in a notebook, one line per tenth elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..messages import get_language, tr, translate, used_language
from ..sizes import size_text
from .language import say

# In the first moments a rate says nothing.
_LEAST_SECONDS = 0.5


@contextmanager
def progress_bar(
    quiet: bool = False, doing: str = tr("writing")
) -> Iterator[Callable[[int, int], None]]:
    """Give a function of ``(done, total)`` in bytes that shows how far a job is, its rate and the
    time that is left; ``doing`` says what is done. It may be called from any thread, and speaks the
    language of this one.
    """
    if quiet:
        yield lambda written, total: None
    elif sys.stderr.isatty() or "ipykernel" in sys.modules:
        with _Bar(doing) as bar:
            yield bar.show
    else:
        yield _tenths(doing)


class _Bar:
    """tqdm's bar, or its widget in a notebook; made when the total is known.

    It ends when the total is reached, so that a bar of what is done next begins on its own line.
    """

    def __init__(self, doing: str) -> None:
        self._doing = translate(doing)
        self._is_over = False

    def __enter__(self) -> _Bar:
        from tqdm.auto import tqdm

        self._bar = tqdm(disable=True)
        return self

    def show(self, written: int, total: int) -> None:
        from tqdm.auto import tqdm

        if self._is_over:
            return
        if self._bar.disable:
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc=self._doing)
        self._bar.update(written - self._bar.n)
        if written >= total:
            self._is_over = True
            self._bar.close()

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _tenths(doing: str) -> Callable[[int, int], None]:
    printed = 0
    started, language = time.monotonic(), get_language()

    def show(written: int, total: int) -> None:
        nonlocal printed
        tenth = 10 * written // max(1, total)
        if tenth > printed:
            printed = tenth
            line = tr(
                "{doing}: {percent} % ({done} of {total}{pace})",
                doing=doing,
                percent=tenth * 10,
                done=size_text(written),
                total=size_text(total),
                pace=_describe_pace(written, total, time.monotonic() - started),
            )
            with used_language(language):
                say(line, file=sys.stderr)

    return show


def _describe_pace(written: int, total: int, seconds: float) -> str:
    """Bytes per second and the time that is left, once they can be told.

    >>> _describe_pace(500_000_000, 2_000_000_000, 5.0), _describe_pace(10, 20, 0.1)
    (', 100.0 MB/s, 0:15 left', '')
    """
    if seconds < _LEAST_SECONDS:
        return ""
    rate = written / seconds
    left = int((total - written) / rate)
    clock = f"{left // 60}:{left % 60:02}"
    return tr(", {rate}/s, {clock} left", rate=size_text(int(rate)), clock=clock)
