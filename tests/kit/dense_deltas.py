"""A base, a model trained from it, and their difference as FastChat published such models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.kit.files import Tensors, load_weights, save_shards
from tests.kit.llamas import make_base
from tests.kit.tokenizer_models import write_tokenizer

ROWS = 101


def make_target(
    folder: Path, base: Path, rows: int = ROWS, seed: int = 7, spread: float = 0.05
) -> Path:
    """The base with every element moved a little, as training does, and new rows at the end."""
    torch.manual_seed(seed)
    tensors: Tensors = {}
    for name, tensor in load_weights(base).items():
        moved = tensor.float() * (1 + spread * torch.randn(tensor.shape))
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            moved = torch.cat([moved, torch.randn(rows - len(moved), moved.shape[1])])
        tensors[name] = moved.half()
    return save_model(folder, base, tensors, rows)


def save_model(folder: Path, base: Path, tensors: Tensors, rows: int = ROWS, **config: Any) -> Path:
    """Save tensors with the base's configuration and a tokenizer of the published kind: the base's
    pieces, and [PAD] and others as added tokens.
    """
    folder.mkdir(parents=True)
    save_shards(tensors, folder, max_shard_size=100_000)
    described = json.loads((base / "config.json").read_text(encoding="utf-8"))
    described |= {"vocab_size": rows, **config}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    write_tokenizer(folder, ROWS)
    added = {"[PAD]" if n == ROWS else f"<extra_{n}>": n for n in range(ROWS, rows)}
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    return folder


def make_published_delta(folder: Path, base: Path, target: Path, **config: Any) -> Path:
    """``target - base`` in float16, the base grown by rows of zeros, as FastChat's v0 did."""
    ours, theirs = load_weights(base), load_weights(target)
    delta = {name: tensor - padded(ours[name], len(tensor)) for name, tensor in theirs.items()}
    return save_model(folder, base, delta, len(delta["lm_head.weight"]), **config)


def padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The tensor with rows of zeros after its own."""
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor


def make_vicuna(folder: Path, rows: int = ROWS, **base: Any) -> tuple[Path, Path, Path]:
    """Base, target and published delta."""
    ours = make_base(folder / "base", **base)
    target = make_target(folder / "target", ours, rows)
    return ours, target, make_published_delta(folder / "delta", ours, target)
