"""The pickle inside torch's files, read with torch's own weights-only unpickler.

Storages come out as empty ones on the ``meta`` device: a tensor then says its shape, strides and
place in its storage, and the storage says its key; the data stays in the file.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
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
# What the unpickler says of a function or class that it does not let in.
_CALL = re.compile(r"GLOBAL (?P<name>\S+)|unrecognized function (?P<function>.+)")
# The newest protocol whose instructions torch's weights-only unpickler knows.
_PROTOCOL = 3


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
        with warnings.catch_warnings():  # of other protocols than 2; what cannot be read is refused
            warnings.simplefilter("ignore", UserWarning)
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
        struct.error,
    ) as error:
        raise _refused(file, error, getattr(unpickler, "proto", 2)) from None
    return pickled


def _refused(file: InputFile, error: Exception, protocol: int) -> FormatError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if call := _CALL.search(reason):
        return FormatError(
            "the file asks to run code when it is read, which weights never need",
            file=file.path,
            expected="a pickle of tensors and plain values",
            found=f"a call of {call['name'] or call['function']}",
            remedy="do not load it with other tools either unless you trust where it is from; if "
            "you do, save its state dict alone; else ask for the weights as safetensors",
        )
    if protocol > _PROTOCOL:
        return FormatError(
            "the file was saved in a pickle protocol that cannot be read safely",
            file=file.path,
            expected="pickle protocol 2, which torch.save writes by itself",
            found=f"protocol {protocol}",
            remedy="load it with torch and save it again without pickle_protocol",
        )
    return FormatError(
        "the pickle in the file cannot be read",
        file=file.path,
        found=shorten(reason, 200),
        remedy="the file is damaged or no checkpoint: fetch or copy it again",
    )


def lazy_tensors(
    file: InputFile, pickled: Pickled, locate: Callable[[str], Location]
) -> dict[str, LazyTensor]:
    """Turn an unpickled state dict into lazy tensors by name.

    ``locate`` gives the place of a storage by its key. Raises ``FormatError`` for values that are
    no dense tensors, for tensors without data, and for those that reach outside their storage.
    """
    places: dict[str, Location] = {}
    tensors: dict[str, LazyTensor] = {}
    for name, value in _state_dict(file, pickled.value).items():
        key = pickled.keys.get(value.untyped_storage()._cdata)
        if key is None:
            raise FormatError(
                "the tensor was saved without its data",
                file=file.path,
                tensor=name,
                expected="a tensor with values",
                found='a tensor on the device "meta", which has only a shape',
                remedy="load the weights before saving the model; ask its author for a whole file",
            )
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
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            kind = getattr(tensor, "layout", type(tensor).__name__)
            raise _beside_tensors(file, str(name), str(kind).removeprefix("torch."))
        if not isinstance(name, str):
            raise _beside_tensors(file, repr(name), "a key that is no name")
    return dict(value)


def _beside_tensors(file: InputFile, name: str, found: str) -> FormatError:
    return FormatError(
        "the file holds something beside dense tensors by name",
        file=file.path,
        tensor=name,
        expected="a tensor",
        found=found,
        remedy="save the model's state dict alone",
    )


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
