"""The pickle inside torch's files: which tensors it describes, and where their data lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NamedTuple

from ...errors import FormatError
from ...messages import tell_error, tr
from ...storage.input_file import InputFile
from ...tensors.lazy import LazyTensor
from ..crc import CrcCheck
from ..file_tensor import FileTensor
from .pickle_machine import DuplicateKeyError, PickleMachine
from .saved_objects import (
    BrokenPickleError,
    ForbiddenCallError,
    OpaqueObject,
    SavedStorage,
    SavedTensor,
)

# Where training scripts and converters put the weights beside other things.
_WRAPPERS = ("model", "state_dict", "module")


class StorageLocation(NamedTuple):
    """Where the data of a storage lies: ``nbytes`` of ``file`` from ``offset`` on.

    ``crc`` is its CRC-32; 0 when the file does not say it.
    """

    file: InputFile
    offset: int
    nbytes: int
    crc: int = 0


@dataclass(frozen=True)
class PickledObject:
    """An unpickled object, and the storages that it speaks of, by their keys."""

    value: Any
    storages: Mapping[str, SavedStorage]


def load_pickle(file: InputFile, stream: BinaryIO) -> PickledObject:
    """Unpickle one object from ``stream``; nothing but tensors and plain values is let in.

    Raises ``FormatError`` for pickles that call anything else, and for damaged ones.
    """
    machine = PickleMachine()
    try:
        return PickledObject(machine.load(stream), machine.storages)
    except ForbiddenCallError as call:
        raise FormatError(
            tr("the file asks to run code when it is read, which weights never need"),
            file=file.path,
            expected=tr("a pickle of tensors and plain values"),
            found=tr("a call of {call}", call=call),
            remedy=tr(
                "do not load it with other tools either unless you trust where it is "
                "from; if you do, save its state dict alone; else ask for the "
                "weights as safetensors"
            ),
        ) from None
    except DuplicateKeyError as key:
        raise FormatError(
            tr("the file gives two values for one name"),
            file=file.path,
            tensor=str(key),
            remedy=tr("nobody can know which is meant: get the weights from elsewhere"),
        ) from None
    except BrokenPickleError as error:
        raise FormatError(
            tr("the pickle in the file cannot be read"),
            file=file.path,
            expected=tr("a state dict as torch.save writes it"),
            found=tell_error(error, 200),
            remedy=tr("the file is damaged or not a checkpoint: fetch or copy it again"),
        ) from None


def make_lazy_tensors(
    file: InputFile,
    pickled: PickledObject,
    locate: Callable[[str], StorageLocation],
    alone: str | None = None,
) -> dict[str, LazyTensor]:
    """Turn an unpickled state dict into lazy tensors by name; ``alone`` names a tensor that is
    there without a name, which is refused where it is None.

    ``locate`` gives the place of a storage by its key. Raises ``FormatError`` for values that are
    no dense tensors, for tensors without data, and for those that reach outside their storage.
    """
    places: dict[str, StorageLocation] = {}
    tensors: dict[str, LazyTensor] = {}
    saved = pickled.value
    if alone is not None and isinstance(saved, SavedTensor):
        saved = {alone: saved}
    for name, value in _find_state_dict(file, saved).items():
        storage = value.storage
        if storage is None:
            raise FormatError(
                tr("the tensor was saved without its data"),
                file=file.path,
                tensor=name,
                expected=tr("a tensor with values"),
                found=tr('a tensor on the device "meta", which has only a shape'),
                remedy=tr(
                    "load the weights before saving the model; ask its author for a whole file"
                ),
            )
        if storage.key not in places:
            places[storage.key] = locate(storage.key)
            _require_whole(file, places[storage.key], storage.nbytes)
        tensors[name] = _open_tensor(file, name, value, places[storage.key])
    return tensors


def _find_state_dict(file: InputFile, value: object) -> dict[str, SavedTensor]:
    for wrapper in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    if not isinstance(value, Mapping):
        raise FormatError(
            tr("the file holds no mapping of names to tensors"),
            file=file.path,
            found=type(value).__name__.removeprefix("Saved"),
            remedy=tr("give a file that torch.save wrote from a state dict"),
        )
    for name, tensor in value.items():
        if not isinstance(name, str):
            shown = str(name) if isinstance(name, (int, float)) else type(name).__name__
            raise _no_tensor_error(file, shown, tr("a key that is not text"))
        if not isinstance(tensor, SavedTensor):
            kind = tensor.kind if isinstance(tensor, OpaqueObject) else type(tensor).__name__
            raise _no_tensor_error(file, name, kind.removeprefix("torch."))
    return dict(value)


def _no_tensor_error(file: InputFile, name: str, found: str) -> FormatError:
    return FormatError(
        tr("the file holds something beside dense tensors by name"),
        file=file.path,
        tensor=name,
        expected=tr("a tensor"),
        found=found,
        remedy=tr("save the model's state dict alone"),
    )


def _require_whole(file: InputFile, place: StorageLocation, needed: int) -> None:
    """Raise ``FormatError`` for a storage of another size, or that ends beyond its file."""
    if (end := place.offset + place.nbytes) > place.file.size:
        raise file.cut_off_error(end)
    require_storage_size(file, place.nbytes, needed)


def require_storage_size(file: InputFile, nbytes: int, needed: int) -> None:
    """Raise ``FormatError`` unless a storage of ``nbytes`` has the ``needed`` ones."""
    if nbytes != needed:
        raise FormatError(
            tr("a storage has another size than its tensors say"),
            file=file.path,
            expected=tr("{needed:,} bytes", needed=needed),
            found=tr("{nbytes:,} bytes", nbytes=nbytes),
            remedy=tr("the file is damaged: fetch or copy it again"),
        )


def _open_tensor(
    file: InputFile, name: str, tensor: SavedTensor, place: StorageLocation
) -> FileTensor:
    origin = f"{file.path.name}: {name}"
    start = place.offset + tensor.offset * tensor.dtype.itemsize
    lazy = FileTensor(tensor.shape, tensor.dtype, origin, place.file, start, tensor.strides)
    lazy.check_inside(place.offset, place.nbytes)
    if place.crc and lazy.nbytes == place.nbytes and lazy.is_contiguous():
        return replace(lazy, checksum=CrcCheck(file.path, name, place.nbytes, place.crc))
    return lazy
