"""What is found in a folder: what stops a converter, and what it does wrong without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from ..errors import LayoutError, MergeError

Outcome = Literal["stops", "silent"]


@dataclass(frozen=True)
class Finding:
    """``stops``: the converter refuses. ``silent``: it writes a file that is wrong, or that
    llama.cpp refuses."""

    outcome: Outcome
    problem: MergeError


@dataclass
class Report:
    """What a converter would make of a folder: ``facts`` to know, ``findings`` to mend."""

    converter: str
    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stops(self, sentence: str, **facts: object) -> None:
        """Add what the converter would refuse; ``facts`` are those of ``MergeError``."""
        self._add("stops", sentence, facts)

    def silent(self, sentence: str, **facts: object) -> None:
        """Add what the converter would get wrong without saying so."""
        self._add("silent", sentence, facts)

    @contextmanager
    def collecting(self, outcome: Outcome = "stops") -> Iterator[None]:
        """Turn a mistake that is raised inside into a finding."""
        try:
            yield
        except MergeError as problem:
            self.findings.append(Finding(outcome, problem))

    def _add(self, outcome: Outcome, sentence: str, facts: dict[str, object]) -> None:
        self.findings.append(Finding(outcome, LayoutError(sentence, **facts)))  # type: ignore[arg-type]
