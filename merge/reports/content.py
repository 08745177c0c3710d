"""The content of ``report.json``: numbers and names, the same in every language.

Sentences are made of it when the page is laid out (``page.py``). Everything is JSON; what is not
known is null.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..checksums.known_files import load_known_files
from ..deltas.apply import Step
from ..deltas.observed import Measurements
from ..layouts.decoder import VOCABULARY_TENSORS
from ..messages import rename_paths
from ..options import options_of
from ..settings import OutputSettings
from ..sizes import peak_memory
from ..tokenizers.opaque_tokenizer import Tokenizer
from ..untrusted.strict_json import dump_json
from ..version import REPORT_MARK, __version__
from .findings import find_findings
from .pace import Pace
from .tensor_changes import (
    build_heat_map,
    describe_changes,
    iter_ranks,
    list_most_changed,
    sum_up_changes,
)
from .vocabulary_changes import describe_vocabulary

FORMAT = 1
# Options that say nothing of the result, or that stand elsewhere in a report.
_NOT_TOLD = ("report", "output_type", "overwrite", "resume")
_LIBRARIES = ("torch", "numpy", "peft", "transformers", "gguf")


@dataclass(frozen=True)
class ReportSource:
    """What a report is made of, beside manifest and pace.

    ``kind`` is ``merge`` or ``apply_delta``; ``inputs`` are the models that went in, by role, and
    under ``adapters`` the adapters in their order. ``before`` is the base's own tokenizer.
    ``filled_rows`` counts rows that the merge itself has filled for new tokens, as ``filling``
    says. Without ``is_merge`` the numbers are measured after the merge, and time and memory are
    those of the measuring. ``copies`` are names to say in place of the paths of copies.
    """

    kind: str
    inputs: Mapping[str, Any]
    measured: Measurements
    steps: Mapping[str, Sequence[Step]]
    base_rows: int
    before: Tokenizer | None
    after: Tokenizer
    settings: OutputSettings
    filled_rows: int = 0
    filling: str | None = None
    is_merge: bool = True
    copies: Mapping[Path, str] = field(default_factory=dict)

    @property
    def parts(self) -> int:
        """How many adapters; a delta counts as one."""
        return len(self.inputs.get("adapters", ())) or 1


def build_report(
    source: ReportSource, manifest: Mapping[str, Any], pace: Pace, measured_again: int
) -> dict[str, Any]:
    """The report of a merge whose ``manifest`` is given.

    ``measured_again`` of its tensors were measured in a pass of its own.
    """
    measured = source.measured
    tensors = describe_changes(measured, source.steps, source.parts)
    vocabulary = {name: rows for name, rows in measured.rows.items() if name in VOCABULARY_TENSORS}
    report: dict[str, Any] = {
        "about": REPORT_MARK,
        "format": FORMAT,
        "kind": source.kind,
        "manifest_sha256": digest_manifest(manifest),
        "inputs": {"adapters": [], **source.inputs, "tokenizer": _describe_tokenizer(source)},
        "output": {
            "name": source.settings.model_name,
            "type": source.settings.output_type,
            "dtype": manifest.get("dtype"),
            "files": {
                name: {key: entry[key] for key in ("bytes", "sha256")}
                for name, entry in manifest["files"].items()
            },
        },
        "options": {
            name: value
            for name, value in list_options(source.settings).items()
            if source.is_merge or name in manifest
        },
        "versions": list_versions(),
        "run": {"is_merge": source.is_merge, **_describe_run(pace, measured_again)},
        "changes": sum_up_changes(tensors, source.parts),
        "heat_map": build_heat_map(tensors, source.parts),
        "ranks": [
            {"adapter": adapter, "module": module, "rank": rank, "scaling": scaling}
            for adapter, module, rank, scaling in iter_ranks(tensors)
        ],
        "most_changed": list_most_changed(tensors),
        "vocabulary": {
            **describe_vocabulary(source.before, source.after, source.base_rows, vocabulary),
            "filled_rows": source.filled_rows,
            "new_token_init": source.filling,
        },
        "tensors": tensors,
    }
    return {**report, "findings": find_findings(report)}


def digest_manifest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's file, by which a report belongs to a result."""
    return hashlib.sha256(dump_json(manifest)).hexdigest()


def list_options(settings: OutputSettings) -> dict[str, Any]:
    """The options that differ from their defaults, as JSON holds them."""
    chosen = {}
    for name, one in options_of(type(settings)).items():
        value = getattr(settings, name)
        if value != one.default and name not in _NOT_TOLD:
            chosen[name] = str(value) if isinstance(value, Path) else value
    return chosen


def list_versions() -> dict[str, str]:
    """Releases of what took part."""
    found = {"chinese-llama-merge": __version__, "Python": platform.python_version()}
    for name in _LIBRARIES:
        if name in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return {**found, "system": platform.platform()}


def _describe_tokenizer(source: ReportSource) -> dict[str, Any]:
    tokenizer = source.after
    digest = hashlib.sha256(tokenizer.vocabulary).hexdigest()
    known = load_known_files().get(digest)
    return {
        "source": rename_paths(str(tokenizer.path), source.copies),
        "tokens": tokenizer.n_tokens,
        "sha256": digest,
        "published": known.model if known else None,
    }


def _describe_run(pace: Pace, measured_again: int) -> dict[str, Any]:
    """Time, memory and pace; seconds and bytes."""
    seconds, points = pace.seconds, pace.points
    done = points[-1][1] if points else 0
    written = points[-1][0] - points[0][0] if points else 0.0
    return {
        "seconds": round(seconds, 3),
        "peak_memory": peak_memory(),
        "bytes": done,
        "bytes_per_second": round(done / written) if written else None,
        "progress": [[round(when, 3), count] for when, count in points],
        "tensors_measured_again": measured_again,
    }
