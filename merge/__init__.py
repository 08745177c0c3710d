"""Merge Chinese LoRA adapters into LLaMA and write the full model, in constant memory.

The public names are resolved on first use, so that ``import merge`` and ``--help`` cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .errors import MergeError
    from .jobs.apply_delta import apply_delta, make_delta
    from .jobs.convert_checkpoint import convert_checkpoint
    from .jobs.many_results import ManyReport
    from .jobs.merge_lora import MergeReport, merge_lora
    from .jobs.merge_many import merge_many
    from .jobs.report import ReportResult, write_report
    from .jobs.resize_vocabulary import resize_vocabulary
    from .jobs.verify_merge import Verification, verify_merge

__all__ = [
    "ManyReport",
    "MergeError",
    "MergeReport",
    "ReportResult",
    "Verification",
    "__version__",
    "apply_delta",
    "convert_checkpoint",
    "make_delta",
    "merge_lora",
    "merge_many",
    "resize_vocabulary",
    "verify_merge",
    "write_report",
]

_HOME = {
    "ManyReport": "jobs.many_results",
    "MergeError": "errors",
    "MergeReport": "jobs.merge_lora",
    "ReportResult": "jobs.report",
    "Verification": "jobs.verify_merge",
    "apply_delta": "jobs.apply_delta",
    "convert_checkpoint": "jobs.convert_checkpoint",
    "make_delta": "jobs.apply_delta",
    "merge_lora": "jobs.merge_lora",
    "merge_many": "jobs.merge_many",
    "resize_vocabulary": "jobs.resize_vocabulary",
    "verify_merge": "jobs.verify_merge",
    "write_report": "jobs.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
