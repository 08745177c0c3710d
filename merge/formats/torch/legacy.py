"""``.bin`` and ``.pth`` from before torch 1.6: a chain of pickles, then the storages' raw bytes.

    magic number, protocol version, system info, the object, the list of storage keys   (pickles)
    for each key, in that order: the number of elements (int64), then the elements

torch reads such a file whole; here only its pickles are read, and the storages stay in the file.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, cast

from ...errors import FormatError
from ...messages import tr
from ...storage.input_file import InputFile
from ...tensors.lazy import LazyTensor
from .pickle_machine import MAGIC_NUMBER
from .state_dict import (
    PickledObject,
    StorageLocation,
    load_pickle,
    make_lazy_tensors,
    require_storage_size,
)

# The first pickle of such a file: the magic number in protocol 2.
MAGIC = b"\x80\x02\x8a\n" + MAGIC_NUMBER.to_bytes(10, "little")
_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


def read(file: InputFile, alone: str | None = None) -> dict[str, LazyTensor]:
    """Return the tensors of an old file, by name, without reading their data.

    Raises ``FormatError`` for a damaged file and for data written on a big-endian machine.
    """
    with file.path.open("rb") as stream:
        values = [load_pickle(file, cast(BinaryIO, stream)) for _ in range(5)]
        places = _locate_storages(file, values[3], values[4].value, stream)
    if values[1].value != _PROTOCOL:
        raise FormatError(
            tr("the file is of a version of torch's old container that is not known"),
            file=file.path,
            expected=_PROTOCOL,
            found=type(values[1].value).__name__,
            remedy=tr("the file is damaged: fetch or copy it again"),
        )
    _require_little_endian(file, values[2].value)
    return make_lazy_tensors(file, values[3], places.__getitem__, alone)


def _locate_storages(
    file: InputFile, pickled: PickledObject, keys: object, stream: io.BufferedReader
) -> dict[str, StorageLocation]:
    """Walk over the storages behind the pickles and note where each lies."""
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not isinstance(keys, list) or not named or set(pickled.storages) != set(keys):
        raise FormatError(
            tr("the list of storages does not fit the tensors"),
            file=file.path,
            remedy=tr("the file is damaged: fetch or copy it again"),
        )
    places: dict[str, StorageLocation] = {}
    offset = stream.tell()
    for key in keys:
        (elements,) = _COUNT.unpack(file.read(offset, _COUNT.size))
        offset += _COUNT.size
        storage = pickled.storages[key]
        require_storage_size(file, elements * storage.dtype.itemsize, storage.nbytes)
        places[key] = StorageLocation(file, offset, storage.nbytes)
        offset += storage.nbytes
    return places


def _require_little_endian(file: InputFile, system: object) -> None:
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise FormatError(
            tr("the checkpoint was written on a big-endian machine"),
            file=file.path,
            remedy=tr("load and save it once with torch on an ordinary machine"),
        )
