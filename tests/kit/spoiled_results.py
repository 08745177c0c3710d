"""Merges to verify, and ways to spoil them that another program would not notice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from merge import verify_merge
from merge.errors import MergeError
from tests.kit.content_digests import OF_BLOCKS, hash_blocks
from tests.kit.files import Tensors, save_tensors


def load(path: Path) -> Tensors:
    if path.suffix == ".safetensors":
        return load_file(path)
    tensors: Tensors = torch.load(path, weights_only=True)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".safetensors"))


def spoil(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Rewrite the one weight file of a folder with changed tensors."""
    (path,) = weight_files(folder)
    tensors = load(path)
    change(tensors)
    save_tensors(path, tensors)


def manifest(folder: Path) -> Any:
    return json.loads((folder / "merge_manifest.json").read_text(encoding="utf-8"))


def vouch(folder: Path, contents: bool = True) -> None:
    """Make the manifest agree with what is in the folder, as a merge that went wrong would.

    With ``contents`` the digests of the tensors too; only for Hugging Face's layout.
    """
    said = manifest(folder)
    for name, entry in said["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    for path in weight_files(folder) if contents else ():
        for name, tensor in load(path).items():
            said["tensors"][name][OF_BLOCKS] = hash_blocks(tensor)
    (folder / "merge_manifest.json").write_text(json.dumps(said), encoding="utf-8")


def flip_in_place(path: Path, name: str, bit: int) -> None:
    """Flip a bit in the middle of a tensor's data, where that lies in the file."""
    raw = load(path)[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    data = bytearray(path.read_bytes())
    assert data.count(raw) == 1
    data[data.index(raw) + len(raw) // 2] ^= 1 << bit
    path.write_bytes(data)


@contextmanager
def gguf_tensor(path: Path, name: str) -> Iterator[Any]:
    """The data of one tensor of a GGUF file as the package maps it, to be changed in place."""
    import gguf

    reader = gguf.GGUFReader(path, "r+")
    yield next(item.data for item in reader.tensors if item.name == name)
    reader.data.flush()


def faults(folder: Path, **named: Any) -> list[MergeError]:
    """What ``verify_merge`` finds wrong in a folder."""
    return list(verify_merge(folder, **named).faults)
