"""JSON files: read with an error that says what is wrong, written as the ecosystem does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ``FormatError`` when the file holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(
            "the file is no JSON", file=path, found=error, remedy="fetch or mend the file"
        ) from None
    if not isinstance(value, dict):
        raise FormatError(
            "the file holds no JSON object",
            file=path,
            expected="{...}",
            found=type(value).__name__,
            remedy="fetch or mend the file",
        )
    return value


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Write a JSON object as the ecosystem does: two spaces, UTF-8, a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
