"""Digests, and the manifest that tells how a merged model came about."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from .jobs import MergeJob


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def manifest(job: MergeJob, digests: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """What ``merge_manifest.json`` says: tool, inputs, rounding, files, and each tensor's making.

    ``digests`` are the SHA-256 of each written tensor's bytes, by file and name in the file. A base
    tensor's digest is null when it was replaced unread. The same inputs give the same manifest: no
    times, no machine.
    """
    from .digests import content_digests

    read = content_digests(job.base.tensors)
    return {
        "tool": {"name": "chinese-llama-merge", "version": __version__},
        "inputs": {
            "base_model": {
                "source": job.sources.base_model,
                "files": [
                    {"file": path.name, "bytes": path.stat().st_size} for path in job.base.files
                ],
                "tensors": {
                    name: {"dtype": dtype_name(tensor.dtype), "sha256": read[name]}
                    for name, tensor in job.base.tensors.items()
                },
            },
            "adapters": [
                {"source": source, "files": [_described(a.config.path), _described(a.weights)]}
                for source, a in zip(job.sources.lora_models, job.adapters, strict=True)
            ],
            "tokenizer": {
                "sha256": sha256(job.sources.tokenizer.contents["tokenizer.model"]).hexdigest()
            },
        },
        "output_type": job.settings.output_type,
        "dtype": job.settings.dtype,
        "rounding": job.settings.rounding,
        "files": {
            name: {
                info.name: {
                    "shape": list(info.shape),
                    "dtype": dtype_name(info.dtype),
                    "sha256": digests[name][info.name],
                }
                for info in infos
            }
            for name, infos in job.plan.files.items()
        }
        | {name: {} for name in job.plan.documents},
        "tensors": {
            name: {
                "from": job.model.tensors[name].origin,
                "steps": [step.as_json() for step in steps],
            }
            for name, steps in job.model.steps.items()
        },
    }


def _described(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def dtype_name(dtype: object) -> str:
    """``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")
