"""How the merges of a file ended, and the table of that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import shown
from ..messages import column_width, tr, translate
from ..sizes import size_text

State = Literal[
    "planned", "done", "complete already", "failed", "wrong", "interrupted", "not started"
]

_STATES: dict[State, str] = {
    "done": tr("done"),
    "complete already": tr("complete already"),
    "failed": tr("failed"),
    "wrong": tr("wrong"),
    "interrupted": tr("interrupted"),
    "not started": tr("not started"),
    "planned": tr("planned"),
}
_HEAD = (tr("job"), tr("output"), tr("state"), tr("seconds"), tr("size"))
_TO_THE_RIGHT = (True, False, False, True, True)


@dataclass(frozen=True)
class JobResult:
    """How a job ended; ``number`` counts from 1 in the order of the file.

    ``text`` is the summary of the merge, or what was wrong, and ``trace`` then where. ``nbytes``
    are those of the result's tensors. A result that ``verify`` finds faults in is ``wrong``. A job
    whose check cannot be made is ``failed``, though its result is there.
    """

    number: int
    output_dir: Path
    state: State
    seconds: float = 0.0
    nbytes: int = 0
    text: str = ""
    trace: str = ""

    def describe_state(self) -> str:
        """How it ended, for people."""
        return _STATES[self.state]

    @property
    def is_failure(self) -> bool:
        """Whether there is no result, or a wrong or unchecked one."""
        return self.state in ("failed", "wrong")


@dataclass(frozen=True)
class ManyReport:
    """How each job of a file ended, in the order of the file."""

    results: tuple[JobResult, ...]

    @property
    def failures(self) -> tuple[JobResult, ...]:
        """The jobs that failed, or whose result is wrong."""
        return tuple(one for one in self.results if one.is_failure)

    def summary(self) -> str:
        """A table with a line for each job, in the language that is used."""
        head = tuple(map(translate, _HEAD))
        rows = [head, *map(_make_row, self.results)]
        widths = [max(map(column_width, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(_pad, row, widths, _TO_THE_RIGHT)) for row in rows)


def _make_row(result: JobResult) -> tuple[str, ...]:
    seconds = f"{result.seconds:.1f}" if result.seconds else "-"
    size = size_text(result.nbytes) if result.nbytes else "-"
    state = translate(result.describe_state())
    return str(result.number), shown(str(result.output_dir)), state, seconds, size


def _pad(text: str, width: int, to_the_right: bool) -> str:
    space = " " * (width - column_width(text))
    return space + text if to_the_right else text + space
