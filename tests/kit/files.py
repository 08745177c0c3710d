"""Write models' files with other people's software, and look at folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def save_tensors(path: Path, tensors: Tensors) -> None:
    """With torch, or with safetensors where the name ends so."""
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def save_shards(
    state: Tensors, folder: Path, container: str = ".bin", max_shard_size: int | str = "10GB"
) -> list[Path]:
    """Save a state dict as transformers did: numbered shards and an index."""
    stem = "pytorch_model" if container == ".bin" else "model"
    pattern = stem + "{suffix}" + container
    split = split_torch_state_dict_into_shards(
        state, filename_pattern=pattern, max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: state[name].clone() for name in names}
        if container == ".bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}{container}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return [folder / file for file in split.filename_to_tensors]


def load_weights(folder: Path) -> Tensors:
    """Every tensor of a folder's ``.bin`` or safetensors files."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.bin")):
        tensors |= torch.load(path, weights_only=True)
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def copied(folder: Path, to: Path) -> Path:
    """A copy of a folder, to be spoiled."""
    return Path(shutil.copytree(folder, to))


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything in a folder, hidden files too: time of the last change and digest of each."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, _digest(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    } | {str(path.relative_to(folder)): (0, "") for path in folder.rglob("*") if path.is_dir()}


def _digest(path: Path) -> str:
    if path.stat().st_size > 1 << 24:  # a sparse file: its size and time must do
        return str(path.stat().st_size)
    return hashlib.sha256(path.read_bytes()).hexdigest()
