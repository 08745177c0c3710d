"""What a check of a result has found."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import MergeError


@dataclass
class Findings:
    """What is wrong (``faults``), what was checked, and what could not be, in lines for people."""

    faults: list[MergeError] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Add what another check has found."""
        self.faults += other.faults
        self.checked += other.checked
        self.unchecked += other.unchecked
