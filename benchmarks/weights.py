"""Folders of weights, read by torch and safetensors themselves, one tensor at a time."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Weights = Mapping[str, Callable[[], "Tensor"]]
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin", "consolidated.*.pth")


@dataclass(frozen=True)
class WeightFile:
    """One file and what it holds; a tensor is mapped when it is called for, never copied."""

    path: Path
    tensors: Weights


def weight_files(folder: Path) -> list[WeightFile]:
    """Open every file of weights in ``folder``, sorted by name."""
    paths = sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"no file of weights in {folder}")
    return [WeightFile(path, _open(path)) for path in paths]


def read_folder(folder: Path) -> Weights:
    """All tensors of ``folder`` by name; a name that two files hold is an error."""
    weights: dict[str, Callable[[], Tensor]] = {}
    for file in weight_files(folder):
        for name in file.tensors:
            if name in weights:
                raise ValueError(f"{name} stands twice in {folder}")
        weights |= file.tensors
    return weights


def _open(path: Path) -> Weights:
    """Raises ``ValueError`` for a file that is not what its ending says."""
    import torch
    from safetensors import SafetensorError

    try:
        return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)
    except (RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read by torch {torch.__version__}: {error}") from error


def _open_safetensors(path: Path) -> Weights:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt")
    return {name: _call(file.get_tensor, name) for name in list(file.keys())}


def _open_torch(path: Path) -> Weights:
    import torch

    loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return {name: _call(loaded.__getitem__, name) for name in loaded}


def _call(get: Callable[[str], Tensor], name: str) -> Callable[[], Tensor]:
    return lambda: get(name)


def archive_faults(path: Path) -> Iterator[str]:
    """What other readers than torch would stumble over in a ``.bin`` or ``.pth`` file.

    llama.cpp's converter reads through ``zipfile``, which checks every CRC-32, and takes a storage
    for the tensor: each has to be contiguous and the only one in its storage.
    """
    if path.suffix == ".safetensors":
        return
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        yield f"{path.name}: bad CRC-32 of {bad}"
    for name, get in _open(path).items():
        tensor = get()
        own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        if not (tensor.is_contiguous() and own):
            yield f"{path.name}: {name} is a view into another tensor's storage"
