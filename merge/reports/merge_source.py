"""What the report of a merge is made of, from the planned merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checksums.adapter_order import PREREQUISITES
from ..deltas.adapter import Adapter
from ..errors import UsageError
from ..plan.adapter_checks import check_order
from .content import ReportSource
from .merge_text import PlannedMerge


def describe_merge(job: PlannedMerge) -> ReportSource:
    """What the report of this merge, which is measured, is made of."""
    measured = job.plan.measured
    assert measured is not None, "a merge with a report is measured"
    sources, vocabulary = job.sources, job.vocabulary
    rows = vocabulary.require_rows(new_tokens=True)
    tokens = sources.tokenizer.n_tokens or 0
    filling = job.settings.new_token_init
    inputs: dict[str, Any] = {
        "base_model": {"source": sources.base_model, "rows": vocabulary.base_rows},
        "adapters": [
            _describe_adapter(source, adapter)
            for source, adapter in zip(sources.lora_models, job.adapters, strict=True)
        ],
        "unusual_order": _describe_order(job),
    }
    if sources.delta is not None:
        inputs["delta_model"] = {"source": sources.delta_model, "rows": vocabulary.base_rows}
    return ReportSource(
        "merge",
        inputs,
        measured,
        job.model.steps,
        vocabulary.base_rows,
        sources.base_tokenizer,
        sources.tokenizer,
        job.settings,
        max(0, tokens - rows) if filling else 0,
        filling,
    )


def _describe_adapter(source: str, adapter: Adapter) -> dict[str, Any]:
    return {
        "source": source,
        "name": adapter.name,
        "published": adapter.published,
        "trained_on": adapter.config.base_model_name_or_path,
        "kind": adapter.config.method or adapter.config.peft_type,
        "weight": adapter.config.weight,
        "files": [
            {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}
            for path, digest in adapter.digests.items()
        ],
    }


def _describe_order(job: PlannedMerge) -> Mapping[str, Any] | None:
    """Which adapter is not where it was published to be; None where the order is a known one."""
    if not job.settings.allow_unknown_combination:  # any other order was refused
        return None
    try:
        check_order(job.sources, job.base, job.adapters)
    except UsageError:
        names = [adapter.published or adapter.name for adapter in job.adapters]
        wanted = ((name, PREREQUISITES.get(name)) for name in names)
        missing = [
            (name, below)
            for number, (name, below) in enumerate(wanted)
            if below is not None and (not number or names[number - 1] != below)
        ]
        adapter, below = missing[0] if missing else (None, None)
        return {"order": names, "adapter": adapter, "below": below}
    return None
