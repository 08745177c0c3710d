"""The last part of every job: a plan becomes a folder, and a report says what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..json_text import json_bytes
from ..outputs import MANIFEST_NAME
from ..settings import OutputSettings
from ..sizes import peak_memory, size_text
from ..staging import StagedFolder

if TYPE_CHECKING:
    from ..engine import WrittenFile
    from ..plan import Plan

OnProgress = Callable[[int, int], object]
Manifest = Callable[[Mapping[str, "WrittenFile"]], dict[str, Any]]


def write(
    plan: Plan,
    output: Path,
    settings: OutputSettings,
    replaced: Sequence[Path],
    manifest: Manifest,
    on_progress: OnProgress | None,
) -> None:
    """Write weights first and the manifest last: the folder is complete when that is there.

    ``replaced`` are the files of an earlier result that go when the new ones are in place.
    ``manifest`` is called at the end, with what the weight files have become.
    """
    from .. import engine

    total, written = plan.tensor_bytes, 0

    def progress(count: int) -> None:
        nonlocal written
        written += count
        if on_progress is not None:
            on_progress(written, total)

    with StagedFolder(output, obsolete=replaced) as staged:
        written_files = engine.run(
            plan,
            staged,
            num_workers=settings.workers,
            max_memory=settings.memory,
            io=settings.io,
            progress=progress,
        )
        for name, data in plan.documents.items():
            staged.write(name, data)
        staged.write(MANIFEST_NAME, json_bytes(manifest(written_files)))


@dataclass(frozen=True)
class Report:
    """What a job did (or, with ``dry_run``, would do), where, and how long it took.

    ``inputs``, ``changes`` and ``notes`` are lines for people.
    """

    output_dir: Path
    plan: Plan
    seconds: float
    dry_run: bool
    inputs: tuple[str, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Tell it in a few lines."""
        lines = [*self.inputs, *self.changes, *self._output()]
        lines += [f"note: {note}" for note in (*self.notes, *self.plan.notes)]
        return "\n".join(
            ["Planned:" if self.dry_run else "Done:", *(f"  {line}" for line in lines)]
        )

    def _output(self) -> list[str]:
        files = list(self.plan.files)
        listed = ", ".join(files) if len(files) <= 4 else f"{files[0]} ... {files[-1]}"
        lines = [f"output     {self.output_dir}: {listed} ({size_text(self.plan.tensor_bytes)})"]
        if self.dry_run:
            room = size_text(self.plan.disk_bytes)
            return [*lines, f"disk       {room} needed there; nothing was written"]
        peak = peak_memory()
        memory = f", peak memory {size_text(peak)}" if peak else ""
        return [*lines, f"took       {self.seconds:.1f} s{memory}"]
