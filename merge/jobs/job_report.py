"""What a job did, or would do: for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import compose, join, tr
from ..sizes import peak_memory, size_text

if TYPE_CHECKING:
    from ..plan.placement import Plan

COMPLETE_ALREADY = tr("complete already: the result of the same run is there, as it was written")
"""The note on a run with ``resume`` that found its result complete."""


@dataclass(frozen=True)
class Report:
    """What a job did (or, with ``dry_run``, would do), where, and how long it took.

    ``inputs``, ``changes`` and ``notes`` are lines for people; ``sources`` are the inputs by name,
    as the user named them.
    """

    output_dir: Path
    plan: Plan
    seconds: float
    dry_run: bool
    inputs: tuple[str, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    sources: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def was_complete(self) -> bool:
        """Whether ``resume`` found the result of the same run there, complete."""
        return COMPLETE_ALREADY in self.notes

    def summary(self) -> str:
        """Describe it in a few lines."""
        notes = [tr("note: {note}", note=note) for note in self.all_notes()]
        lines = [*self.inputs, *self.changes, *self._output(), *notes]
        head = tr("Planned:") if self.dry_run else tr("Done:")
        return join("\n", [head, *(compose("  {line}", line=line) for line in lines)])

    def as_json(self) -> dict[str, Any]:
        """The same for programs; docs/json.md has the keys."""
        files = {
            name: {"bytes": sum(info.nbytes for info in infos), "tensors": len(infos)}
            for name, infos in self.plan.files.items()
        }
        return {
            "output_dir": str(self.output_dir),
            "dry_run": self.dry_run,
            "complete_already": self.was_complete,
            "inputs": dict(self.sources),
            "files": files,
            "documents": {name: len(data) for name, data in self.plan.documents.items()},
            "tensor_bytes": self.plan.tensor_bytes,
            "disk_bytes": self.plan.disk_bytes,
            "seconds": self.seconds,
            "notes": [*self.notes, *self.plan.notes],
        }

    def all_notes(self) -> tuple[str, ...]:
        """What to know before the result is used."""
        from ..tensors.finite import describe_nonfinite

        return (*self.notes, *self.plan.notes, *describe_nonfinite(self.plan.checked))

    def _output(self) -> list[str]:
        files = list(self.plan.files)
        listed = ", ".join(files) if len(files) <= 4 else f"{files[0]} ... {files[-1]}"
        lines = [
            tr(
                "output     {output_dir}: {listed} ({tensor_bytes})",
                output_dir=self.output_dir,
                listed=listed,
                tensor_bytes=size_text(self.plan.tensor_bytes),
            )
        ]
        if self.dry_run:
            room = size_text(self.plan.disk_bytes)
            return [*lines, tr("disk       {room} needed there; nothing was written", room=room)]
        peak = peak_memory()
        memory = tr(", peak memory {peak}", peak=size_text(peak)) if peak else ""
        return [
            *lines,
            tr("took       {seconds:.1f} s{memory}", seconds=self.seconds, memory=memory),
        ]
