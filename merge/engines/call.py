"""What a job was called with, as plain values: another machine can plan the same job from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..output.fingerprint import JobInputs
from ..settings import OutputSettings
from ..storage.offload import Offload

if TYPE_CHECKING:
    from ..plan.placement import Plan


class PlannedCall(Protocol):
    """What an engine needs to know of a planned job."""

    @property
    def plan(self) -> Plan:
        """What it writes."""

    def reads(self) -> JobInputs:
        """What it reads."""


class Call(Protocol):
    """The values with which a job was called; they can be pickled, a plan cannot.

    Planning on two machines that see the same files gives the same plan.
    """

    @property
    def output(self) -> Path:
        """The output folder."""

    @property
    def settings(self) -> OutputSettings:
        """How the result is written."""

    def find_inputs(self, offload: Offload) -> Any:
        """Find what the names stand for; the Hub's repositories are downloaded."""

    def plan(self, found: Any, offload: Offload) -> PlannedCall:
        """Plan the job of what ``find_inputs`` has found. Raises ``MergeError``."""
