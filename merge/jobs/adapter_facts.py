"""What an adapter holds and whether it fits a base, as data for programs.

``inspect_adapter`` has the same as lines for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checksums.file_digests import start_digests
from ..deltas.adapter_config import WEIGHT_NAMES, AdapterFolder
from ..settings import OutputType
from ..storage.offload import Offload
from .inspect_adapter import QUICK_LAYOUTS, guess_release, plan_layouts

if TYPE_CHECKING:
    from ..deltas.adapter import Adapter


def collect_facts(folder: AdapterFolder, offload: Offload, digest: bool = True) -> dict[str, Any]:
    """The facts of one adapter; docs/json.md has the keys.

    Raises ``MergeError`` for an adapter that no merge takes.
    """
    if digest:
        start_digests(folder.path / name for name in WEIGHT_NAMES)
    from ..deltas.adapter import open_adapter
    from ..plan.adapter_checks import require_consistent_copies

    opened = open_adapter(folder, offload)
    facts = {
        "path": offload.get_name(folder.path),
        **_describe_config(folder),
        **_describe_tensors(opened),
        **_describe_files(opened),
    }
    if digest:
        require_consistent_copies([opened])
        facts |= _describe_digest(opened)
    return facts


def check_fit(
    folder: AdapterFolder,
    base: Path,
    offload: Offload,
    layouts: Sequence[OutputType] = QUICK_LAYOUTS,
    digest: bool = True,
) -> dict[str, Any]:
    """In which layouts a merge into ``base`` can be written, and why not in the others.

    Raises ``MergeError`` where there is none.
    """
    jobs, refused = plan_layouts(str(folder.path), str(base), digest, layouts, offload)
    job = list(jobs.values())[-1]
    return {
        "base_model": str(base),
        "output_types": list(jobs),
        "refused": {layout: error.sentence for layout, error in refused.items()},
        "tokenizer": offload.get_name(job.sources.tokenizer.path),
    }


def _describe_config(folder: AdapterFolder) -> dict[str, Any]:
    fields = folder.fields
    return {
        "kind": fields.get("peft_type", "LORA"),
        "container": "gguf" if folder.gguf is not None else "peft",
        "peft_version": None if folder.gguf is not None else guess_release(fields),
        "base_model_name": fields.get("base_model_name_or_path") or None,
    }


def _describe_tensors(adapter: Adapter) -> dict[str, Any]:
    from ..deltas.apply import count_vocabulary_rows
    from ..tensors.lazy import get_dtype_name

    dtypes = {patch.a.dtype for patch in adapter.low_rank.values()}
    dtypes |= {tensor.dtype for tensor in (*adapter.replaced.values(), *adapter.by_peft.values())}
    return {
        "modules": [
            {"name": name.removesuffix(".weight"), "rank": patch.rank, "scaling": patch.scaling}
            for name, patch in adapter.low_rank.items()
        ],
        "replaced": [
            {"name": name, "shape": list(tensor.shape), "trained": name in adapter.trained}
            for name, tensor in adapter.replaced.items()
        ],
        "merged_by_peft": sorted(adapter.by_peft),
        "dtypes": sorted(map(get_dtype_name, dtypes)),
        "vocabulary_rows": count_vocabulary_rows(adapter) or None,
    }


def _describe_files(adapter: Adapter) -> dict[str, Any]:
    files = adapter.files
    return {
        "ignored": list(adapter.ignored),
        "further_files": [path.name for path in filter(None, (*files.further, files.duplicate))],
        "unread_files": list(files.unknown),
        "unknown_fields": list(adapter.config.unknown),
    }


def _describe_digest(adapter: Adapter) -> dict[str, Any]:
    from ..checksums.adapter_order import PREREQUISITES
    from ..checksums.known_files import identify_adapter

    name = identify_adapter(adapter.digest)
    return {
        "weights": adapter.weights.name,
        "sha256": adapter.digest,
        "published_as": name,
        "published_after": PREREQUISITES.get(name) if name else None,
    }
