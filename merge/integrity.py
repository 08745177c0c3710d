"""The manifest: how a model came about, with digests of what went in and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenizer_tools.huggingface import MODEL_NAME, TokenizerFolder

from . import __version__
from .digests import content_digests, file_digest
from .lazy import Checkpoint, dtype_name
from .plan import Plan


def manifest(
    plan: Plan,
    digests: Mapping[str, Mapping[str, str]],
    inputs: Mapping[str, Any],
    tokenizer: TokenizerFolder,
    how: Mapping[str, Any],
    tensors: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``merge_manifest.json`` says: tool, inputs, how, files, and each tensor's making.

    ``digests`` are the SHA-256 of each written tensor's bytes, by file and name in the file. The
    same inputs give the same manifest: no times, no machine.
    """
    files = {
        name: {
            info.name: {
                "shape": list(info.shape),
                "dtype": dtype_name(info.dtype),
                "sha256": digests[name][info.name],
            }
            for info in infos
        }
        for name, infos in plan.files.items()
    }
    documents = {
        name: {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        for name, data in plan.documents.items()
    }
    model = tokenizer.contents[MODEL_NAME]
    return {
        "tool": {"name": "chinese-llama-merge", "version": __version__},
        "inputs": {**inputs, "tokenizer": {"sha256": sha256(model).hexdigest()}},
        **how,
        "files": files | documents,
        "tensors": dict(tensors),
    }


def checkpoint_entry(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """A base in the manifest: its files' sizes, and a digest of each tensor that was read.

    The digest is null for a tensor that was replaced unread.
    """
    read = content_digests(checkpoint.tensors)
    return {
        "source": source,
        "files": [{"file": path.name, "bytes": path.stat().st_size} for path in checkpoint.files],
        "tensors": {
            name: {"dtype": dtype_name(tensor.dtype), "sha256": read[name]}
            for name, tensor in checkpoint.tensors.items()
        },
    }


def file_entry(path: Path, digest: str | None = None) -> dict[str, Any]:
    """A small input in the manifest, with the digest of the whole file."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest or file_digest(path)}
