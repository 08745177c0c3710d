"""The pickle inside torch's files, read with torch's own weights-only unpickler.

Storages come out as empty ones on the ``meta`` device: a tensor then says its shape, strides and
place in its storage, and the storage says its key; the data stays in the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import torch

# The unpickler that torch.load(weights_only=True) uses; there is no public name for it.
from torch import _weights_only_unpickler

from ..errors import FormatError
from ..lazy import LazyTensor
from .file_tensor import FileTensor
from .files import InputFile

# Where training scripts and converters put the weights beside other things.
_WRAPPERS = ("model", "state_dict", "module")


class Location(NamedTuple):
    """Where the data of a storage lies: ``nbytes`` of ``file`` from ``offset`` on."""

    file: InputFile
    offset: int
    nbytes: int


@dataclass
class Pickled:
    """An unpickled object and the keys of the storages that its tensors live in."""

    value: Any = None
    # By the storage's identity in torch: tensors of one storage share it, wrappers do not.
    keys: dict[int, str] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)
    itemsizes: dict[str, int] = field(default_factory=dict)
    storages: list[torch.UntypedStorage] = field(default_factory=list)

    def persistent_load(self, saved_id: tuple[Any, ...]) -> torch.storage.TypedStorage:
        """Stand an empty storage in for ``("storage", type, key, device, elements, ...)``."""
        kind, storage_type, key, _device, elements, *view = saved_id
        if _text(kind) != "storage" or any(part is not None for part in view):
            raise pickle.UnpicklingError(f"unknown persistent id {saved_id!r}")
        dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
        nbytes = int(elements) * dtype.itemsize
        storage = torch.UntypedStorage(nbytes, device="meta")  # type: ignore[no-untyped-call]
        self.storages.append(storage)
        self.keys[storage._cdata] = _text(key)
        self.itemsizes[_text(key)] = dtype.itemsize
        self.nbytes[_text(key)] = max(nbytes, self.nbytes.get(_text(key), 0))
        return torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
            wrap_storage=storage, dtype=dtype, _internal=True
        )


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def load_pickle(file: InputFile, stream: BinaryIO) -> Pickled:
    """Unpickle one object from ``stream``; nothing but tensors and plain values is let in.

    Raises ``FormatError`` for pickles that call anything else, and for damaged ones.
    """
    pickled = Pickled()
    unpickler = _weights_only_unpickler.Unpickler(stream, encoding="utf-8")
    unpickler.persistent_load = pickled.persistent_load  # type: ignore[method-assign]
    try:
        pickled.value = unpickler.load()  # type: ignore[no-untyped-call]
    # A broken pickle can end in any of these; torch's unpickler does not wrap them.
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise _refused(file, error) from None
    return pickled


def _refused(file: InputFile, error: Exception) -> FormatError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "Unsupported" in reason or "not allowed" in reason or "GLOBAL" in reason:
        return FormatError(
            "the file asks to run code when it is read, which weights never need",
            file=file.path,
            expected="a pickle of tensors and plain values",
            found=reason,
            remedy="do not load it with other tools either unless you trust where it is from; "
            "ask for the weights as safetensors",
        )
    return FormatError(
        "the pickle in the file cannot be read",
        file=file.path,
        found=reason,
        remedy="the file is damaged or no checkpoint: fetch or copy it again",
    )


def lazy_tensors(
    file: InputFile, pickled: Pickled, locate: Callable[[str], Location]
) -> dict[str, LazyTensor]:
    """Turn an unpickled state dict into lazy tensors by name.

    ``locate`` gives the place of a storage by its key. Raises ``FormatError`` for values that are
    no tensors, and for tensors that reach outside their storage.
    """
    places: dict[str, Location] = {}
    tensors: dict[str, LazyTensor] = {}
    for name, value in _state_dict(file, pickled.value).items():
        key = pickled.keys[value.untyped_storage()._cdata]
        if key not in places:
            places[key] = _whole(file, locate(key), pickled.nbytes[key])
        tensors[name] = _lazy(file, name, value, places[key])
    return tensors


def _state_dict(file: InputFile, value: object) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    if not isinstance(value, Mapping):
        raise FormatError(
            "the file holds no mapping of names to tensors",
            file=file.path,
            found=type(value).__name__,
            remedy="give a file that torch.save wrote from a state dict",
        )
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise FormatError(
                "the file holds something beside tensors",
                file=file.path,
                tensor=str(name),
                expected="a tensor",
                found=type(tensor).__name__,
                remedy="save the model's state dict alone",
            )
    return dict(value)


def _whole(file: InputFile, place: Location, needed: int) -> Location:
    if place.nbytes < needed or place.offset + place.nbytes > place.file.size:
        raise FormatError(
            "the file ends before its tensors do: an unfinished download or copy",
            file=file.path,
            expected=f"at least {place.offset + max(needed, place.nbytes):,} bytes",
            found=f"{file.size:,} bytes",
            remedy="fetch or copy the file again",
        )
    return place


def _lazy(file: InputFile, name: str, tensor: torch.Tensor, place: Location) -> FileTensor:
    lazy = FileTensor(
        tuple(tensor.shape),
        tensor.dtype,
        f"{file.path.name}: {name}",
        place.file,
        place.offset + int(tensor.storage_offset()) * tensor.dtype.itemsize,
        tuple(tensor.stride()),
    )
    lazy.check_inside(place.offset, place.nbytes)
    return lazy
