"""Tiny models of the Llama 3 generation in Meta's layout, with the real vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tests.kit.meta_models import Tensors, meta_tensors, params, save_meta, split

ROWS = 128_256
KV_HEADS = 4


def llama3_params(release: str, **changes: Any) -> dict[str, Any]:
    """``params.json`` with the keys of Meta's downloads of this release."""
    scaled = {"use_scaled_rope": True} if release != "3" else {}
    fields = {"norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": ROWS}
    return params(KV_HEADS, **fields, **scaled, **changes)


def llama3_tensors(release: str, seed: int = 0) -> Tensors:
    """A random model in bfloat16; those of Llama 3.2 have one matrix for both vocabularies."""
    tensors = meta_tensors(KV_HEADS, ROWS, torch.bfloat16, seed)
    if release == "3.2":
        tensors["output.weight"] = tensors["tok_embeddings.weight"]
    return tensors


def make_llama3(folder: Path, real_data: Path, release: str = "3", count: int = 1) -> Path:
    """A random model of ``release`` in ``count`` files, embeddings split by rows."""
    shards = split(llama3_tensors(release), count, embeddings_by_rows=True)
    save_meta(folder, shards, llama3_params(release), pieces=None)
    file = real_data / "tokenizers" / "llama3_tiktoken.model"
    shutil.copyfile(file, folder / "tokenizer.model")
    return folder
