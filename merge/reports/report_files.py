"""The two files of a report, made of what a merge has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..messages import tr
from ..settings import OnProgress
from ..untrusted.strict_json import dump_json
from ..version import REPORT_HTML, REPORT_JSON
from .content import ReportSource, build_report
from .pace import Pace


class ReportMaker:
    """Makes the report of one merge, whose pace it follows.

    ``started`` is a time of ``time.monotonic``, when the job began.
    """

    def __init__(self, source: ReportSource, started: float) -> None:
        self._source = source
        self._pace = Pace(started)
        self._findings = 0

    def follow(self, on_progress: OnProgress | None) -> OnProgress:
        """``on_progress``, with an eye on it."""
        return self._pace.following(on_progress)

    def make(self, manifest: Mapping[str, Any]) -> dict[str, bytes]:
        """Measure what has not been measured as it was written; return both files by name."""
        measured = self._source.measured
        missing = len(measured.list_incomplete())
        measured.compute_missing(self._source.settings.workers)
        report = build_report(self._source, manifest, self._pace, missing)
        self._findings = len(report["findings"])
        return render_report(report)

    def describe(self) -> str:
        """What the report that was made says, in a line."""
        return tr(
            "{report_html} shows what was changed; findings in it: {findings}",
            report_html=REPORT_HTML,
            findings=self._findings,
        )


def render_report(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Both files by name."""
    from .page import render_page

    return {REPORT_HTML: render_page(report), REPORT_JSON: dump_json(report)}
