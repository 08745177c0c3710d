"""The file in which measurements are kept: the last record of every case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "performance.json"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Records by case; none when there is no such file."""
    if not path.exists():
        return {}
    records: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["records"]
    return records


def add(path: Path, record: dict[str, Any]) -> None:
    """Put a record in the place of an earlier one of the same case."""
    records = read(path) | {record["case"]: record}
    write(path, {name: records[name] for name in sorted(records)})


def write(path: Path, records: dict[str, dict[str, Any]]) -> None:
    """Replace the file."""
    text = json.dumps({"records": records}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
