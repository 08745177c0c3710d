"""The manifest: how a model came about, with digests of what went in and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..checksums.file_digests import get_file_digest
from ..plan.placement import Plan
from ..tensors.digests import DIGEST_KEYS, DIGEST_VERSION, get_digests
from ..tensors.lazy import Checkpoint, LazyTensor, get_dtype_name
from ..tokenizers.opaque_tokenizer import Tokenizer
from ..version import __version__
from .journal import WrittenFile


def build_manifest(
    plan: Plan,
    written: Mapping[str, WrittenFile],
    inputs: Mapping[str, Any],
    tokenizer: Tokenizer,
    how: Mapping[str, Any],
    steps: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``merge_manifest.json`` says: tool, inputs, how, files, and each tensor's making.

    ``written`` are the weight files; ``steps`` is what was done to tensors, by name, where there is
    more to say than where they come from. The same inputs give the same manifest: no times, no
    machine.
    """
    weights = {
        name: {
            "bytes": written[name].nbytes,
            "sha256": written[name].sha256,
            "tensors": [info.name for info in infos],
        }
        for name, infos in plan.files.items()
    }
    documents = {
        name: {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        for name, data in plan.documents.items()
    }
    return {
        "tool": {"name": "chinese-llama-merge", "version": __version__},
        "inputs": {
            **inputs,
            "tokenizer": {
                "sha256": sha256(tokenizer.vocabulary).hexdigest(),
                **({"source": str(tokenizer.path)} if how.get("tokenizer_named") else {}),
            },
            **({"imatrix": describe_file(plan.imatrix)} if plan.imatrix else {}),
        },
        **how,
        "files": weights | documents,
        "tensors": {
            name: {**entry, "from": plan.tensors[name].origin, **steps.get(name, {})}
            for name, entry in _describe_tensors(plan.tensors).items()
        },
    }


def _describe_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, Any]]:
    """What the manifest says of each tensor itself: dtype, shape and content digest.

    The digest is null for a tensor that was not read whole.
    """
    read = get_digests(tensors)
    return {
        name: {
            "dtype": get_dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            DIGEST_KEYS[DIGEST_VERSION]: read[name],
        }
        for name, tensor in tensors.items()
    }


def describe_checkpoint(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """A base in the manifest: its files' sizes, and a digest of each tensor that was read.

    The digest is null for a tensor that was replaced unread.
    """
    return {
        "source": source,
        "files": [{"file": path.name, "bytes": path.stat().st_size} for path in checkpoint.files],
        "tensors": _describe_tensors(checkpoint.tensors),
    }


def describe_file(path: Path, digest: str | None = None) -> dict[str, Any]:
    """A small input in the manifest, with the digest of the whole file."""
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": digest or get_file_digest(path),
    }
