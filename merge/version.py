"""What results are signed with: the program's version, and the manifest that holds it."""

from __future__ import annotations

__version__ = "0.1.0"
MANIFEST_NAME = "merge_manifest.json"
