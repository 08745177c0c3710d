"""Whether the output folder holds the very result that a job would write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..messages import tr
from ..storage.offload import is_offloaded
from ..untrusted.strict_json import dump_json, read_json
from ..version import MANIFEST_NAME


def is_complete(
    folder: Path, planned: Mapping[str, Any], weights: Iterable[str], inputs: Iterable[Path]
) -> bool:
    """Whether the manifest in ``folder`` is that of this job, and its files are there.

    ``planned`` is what the manifest will say, as far as it is known before the ``weights`` are
    written; digests of content are not compared. False without a manifest or with that of another
    run. Raises ``OutputError`` where files are missing or have other sizes, and where one of the
    ``inputs`` was changed after the result was written.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return False
    found = read_json(path)
    expected = json.loads(dump_json(dict(planned)))
    for name in weights:
        expected["files"][name] |= {"bytes": None, "sha256": None}
    if not _is_as_expected(expected, found):
        return False
    for name, entry in found["files"].items():
        _require_size(folder / name, entry["bytes"])
    written = path.stat().st_mtime_ns
    for file in inputs:
        if not is_offloaded(file) and file.stat().st_mtime_ns > written:
            raise OutputError(
                tr("an input was changed after the result was written"),
                file=file,
                remedy=tr("write the result again with --overwrite"),
            )
    return True


def _is_as_expected(expected: Any, found: Any) -> bool:
    """Whether two JSON values are the same; None is expected where a value is not known yet."""
    if expected is None:
        return True
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            _is_as_expected(value, found[name]) for name, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(_is_as_expected, expected, found))
    return bool(expected == found)


def _require_size(path: Path, expected: object) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        raise OutputError(
            tr("the result was complete, but one of its files has changed"),
            file=path,
            expected=tr("{expected} bytes", expected=expected),
            found=tr("no such file") if found is None else tr("{found} bytes", found=found),
            remedy=tr("write the result again with --overwrite"),
        )
