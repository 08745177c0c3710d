"""How a job comes to a report: asked for its files when the result is written, or beside one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..messages import tr
from ..output.preflight import OutputFolder
from ..output.staged_folder import replace_files
from ..settings import OnProgress
from ..storage.remote_path import RemotePath
from ..version import MANIFEST_NAME, REPORT_NAMES


class ReportMaker(Protocol):
    """What makes a report of the job; see ``reports.report_files``."""

    def follow(self, on_progress: OnProgress | None) -> OnProgress:
        """``on_progress``, with an eye on it."""

    def make(self, manifest: Mapping[str, Any]) -> Mapping[str, bytes]:
        """The files of the report, by name."""

    def describe(self) -> str:
        """What the report that was made says, in a line."""


def make_report(
    report: ReportMaker | None, manifest: Mapping[str, Any]
) -> tuple[Mapping[str, bytes], tuple[str, ...]]:
    """The files of the report, and a note on it, also where it could not be made."""
    if report is None:
        return {}, ()
    try:
        files = report.make(manifest)
    except Exception as error:  # noqa: BLE001 (a merge of hours is worth more than its report)
        return {}, (
            tr(
                "the report could not be made ({name}: {error}); the result is "
                "complete, and report.py tries again",
                name=type(error).__name__,
                error=error,
            ),
        )
    return files, (report.describe(),)


def add_report(folder: OutputFolder, report: ReportMaker | None) -> tuple[str, ...]:
    """Put a report beside a complete result that has none; return a note on it."""
    if report is None or folder.report_names == set(REPORT_NAMES):
        return ()
    if isinstance(folder.path, RemotePath):
        return (
            tr("a result in a bucket gets no report afterwards: download it, and run report.py"),
        )
    files, notes = make_report(report, folder.read_json(MANIFEST_NAME))
    replace_files(folder.path, files)
    return notes
