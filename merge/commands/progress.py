"""Progress in bytes: a bar on a terminal, one line per tenth elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..sizes import size_text
from .language import say


@contextmanager
def progress_bar(
    quiet: bool = False, doing: str = "writing"
) -> Iterator[Callable[[int, int], None]]:
    """Give a function of ``(done, total)`` in bytes that shows how far a job is."""
    if quiet:
        yield lambda written, total: None
    elif sys.stderr.isatty():
        with _Bar(doing) as bar:
            yield bar.show
    else:
        yield _tenths(doing)


class _Bar:
    """tqdm's bar, made when the total is known."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self._bar = tqdm(unit="B", unit_scale=True, desc=self._doing, disable=True)
        return self

    def show(self, written: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar.disable:
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc=self._doing)
        self._bar.update(written - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _tenths(doing: str) -> Callable[[int, int], None]:
    printed = 0

    def show(written: int, total: int) -> None:
        nonlocal printed
        tenth = 10 * written // total
        if tenth > printed:
            printed = tenth
            line = f"{doing}: {tenth * 10} % ({size_text(written)} of {size_text(total)})"
            say(line, file=sys.stderr)

    return show
