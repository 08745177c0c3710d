"""What results are signed with: the program's version, the manifest that holds it, and reports."""

from __future__ import annotations

__version__ = "0.1.0"
MANIFEST_NAME = "merge_manifest.json"
REPORT_JSON, REPORT_HTML = REPORT_NAMES = "report.json", "report.html"
REPORT_MARK = "chinese-llama-merge report"
"""Stands near the beginning of both files of a report."""
