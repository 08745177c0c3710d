"""JSON files: read with an error that says what is wrong, written as the ecosystem does."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..messages import tr

# The largest known, an index of a mixture of experts, has 6 MB.
LARGEST_JSON = 32 << 20
_MOST_DEPTH = 100


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ``FormatError`` when the file holds anything else."""
    return parse_json(read_small(path, LARGEST_JSON), path)


def read_small(path: Path, most: int) -> bytes:
    """Read a file whole. Raises ``FormatError`` when it has more than ``most`` bytes."""
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise FormatError(
            tr("the file is far larger than a file of its name is"),
            file=path,
            expected=tr("at most {most:,} bytes", most=most),
            found=tr("{st_size:,} bytes", st_size=path.stat().st_size),
            remedy=tr("another file has this name: fetch the right one"),
        )
    return content


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object; ``path`` is where it is from, for errors.

    Raises ``FormatError`` when it is anything else, and for what JSON leaves open and readers take
    in different ways: names that appear twice, and numbers that are not finite in float64.
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_make_object,
            parse_constant=_refuse_number,
            parse_float=_parse_number,
        )
        _require_ordinary(value)
    except (ValueError, RecursionError) as error:  # also of encodings and of endless numbers
        raise FormatError(
            tr("the file is not valid JSON"),
            file=path,
            found=error,
            remedy=tr("fetch or fix the file"),
        ) from None
    if not isinstance(value, dict):
        raise FormatError(
            tr("the file does not hold a JSON object"),
            file=path,
            expected="{...}",
            found=type(value).__name__,
            remedy=tr("fetch or fix the file"),
        )
    return value


def _require_ordinary(value: object) -> None:
    """Refuse what no document has and what ends a later step: lone surrogates other than those of
    file names that are not UTF-8, and endless nesting.
    """
    level = [value]
    for _ in range(_MOST_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                item.encode("utf-8", "surrogateescape")
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise ValueError(tr("nested more than {most_depth} deep", most_depth=_MOST_DEPTH))


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(tr("{twice!r} appears twice", twice=twice))
    return made


def _parse_number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _refuse_number(text: str) -> float:
    raise ValueError(tr("{text} is not a finite number", text=text))


def dump_json(value: Mapping[str, Any]) -> bytes:
    """Write a JSON object as the ecosystem does: two spaces, UTF-8, a newline at the end.

    Bytes of file names that are not UTF-8 (``os.fsdecode`` makes lone surrogates of them) become
    JSON's escapes of those, which read back as the same names.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
