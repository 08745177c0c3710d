"""How the merges of a file ended, and the table of that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import shown
from ..sizes import size_text

State = Literal[
    "planned", "done", "complete already", "failed", "wrong", "interrupted", "not started"
]


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
        """A table with a line for each job."""
        rows = [("job", "output", "state", "seconds", "size"), *map(_make_row, self.results)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            f"{number:>{widths[0]}}  {output:<{widths[1]}}  {state:<{widths[2]}}"
            f"  {seconds:>{widths[3]}}  {size:>{widths[4]}}"
            for number, output, state, seconds, size in rows
        )
        return "\n".join(lines)


def _make_row(result: JobResult) -> tuple[str, ...]:
    seconds = f"{result.seconds:.1f}" if result.seconds else "-"
    size = size_text(result.nbytes) if result.nbytes else "-"
    return str(result.number), shown(str(result.output_dir)), result.state, seconds, size
