"""``.bin`` and ``.pth``: the zip archives that ``torch.save`` has written since torch 1.6.

An archive holds ``NAME/data.pkl``, a pickle in which storages are persistent ids, and each storage
uncompressed as ``NAME/data/KEY``. The pickle is read by ``pickle_machine.py``, so nothing in a
file can run code; the storages stay where they are and are read by position.

The writer produces the same structure as one sequential stream. CRC-32 and sizes follow the data
(zip's data descriptors, as torch itself writes them), so no byte is written twice.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from isal import isal_zlib

from ...errors import FormatError
from ...messages import tr
from ...storage.input_file import InputFile
from ...storage.offload import Offload, require_space
from ...tensors.lazy import LazyTensor
from ...untrusted.safe_zip import Records, damaged_record_error, is_stored, iter_chunks, open_zip
from ..container import ContainerWriter, Sink, TensorInfo
from ..file_tensor import get_contiguous_strides
from .pickle_machine import MOST_BYTES
from .saved_objects import STORAGES
from .state_dict import StorageLocation, load_pickle, make_lazy_tensors
from .zip_stream import ZipStream

MAGIC = b"PK\x03\x04"
# What torch.save names the folder inside the archive when it is given no file name.
_ARCHIVE = "archive"
_ALIGNMENT = 64
# data.pkl and byteorder
_RECORDS_BEFORE = 2
# The class by which a pickle names a storage's dtype; torch keeps these for that alone.
_STORAGE_TYPES = {
    dtype: getattr(torch, name) for name, dtype in STORAGES.items() if name != "UntypedStorage"
}
# The function that torch's own tensors name in their pickles, to be rebuilt from a storage.
_REBUILD, _ = torch.empty(0).__reduce_ex__(2)  # type: ignore[no-untyped-call]
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def read(
    file: InputFile, offload: Offload | None = None, alone: str | None = None
) -> dict[str, LazyTensor]:
    """Return the tensors of an archive, by name, without reading their data.

    A storage that is compressed cannot be read in place; it is unpacked into ``offload`` when one
    is given, else refused. Raises ``FormatError`` for what is no whole archive of tensors.
    """
    with open_zip(file.path) as (archive, records):
        root = _find_root(file, records)
        _require_little_endian(file, archive, records, root)
        pickled = load_pickle(
            file, io.BytesIO(_read_small(file, archive, records[f"{root}/data.pkl"]))
        )

        def locate(key: str) -> StorageLocation:
            name = f"{root}/data/{key}"
            if name not in records:
                raise FormatError(
                    tr("the archive lacks the data of a tensor"),
                    file=file.path,
                    expected=tr("a record {name}", name=name),
                    remedy=tr("the file is damaged: fetch or copy it again"),
                )
            return _locate(file, archive, records[name], offload)

        return make_lazy_tensors(file, pickled, locate, alone)


def _find_root(file: InputFile, records: Records) -> str:
    """Name of the folder in the archive that holds the one ``data.pkl``."""
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise FormatError(
            tr("this zip archive is not a torch checkpoint"),
            file=file.path,
            expected=tr("one data.pkl in it"),
            found=f"{len(roots)}",
            remedy=tr("give the weight file itself, not a zip of a folder"),
        )
    return roots[0]


def _require_little_endian(
    file: InputFile, archive: zipfile.ZipFile, records: Records, root: str
) -> None:
    info = records.get(f"{root}/byteorder")
    order = _read_small(file, archive, info) if info else b"little"
    if order != b"little":
        raise FormatError(
            tr("the checkpoint was written on a big-endian machine"),
            file=file.path,
            expected=tr("little-endian data"),
            found=order[:20].decode("ascii", "replace"),
            remedy=tr("load and save it once with torch on an ordinary machine"),
        )


def _read_small(file: InputFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A record as a whole. torch writes 0 for checksums when asked to leave them out."""
    if info.file_size > MOST_BYTES:
        raise damaged_record_error(
            file.path,
            info,
            tr("{file_size:,} bytes, more than a state dict needs", file_size=info.file_size),
        )
    if not is_stored(info):
        return b"".join(iter_chunks(file.path, archive, info))
    data = file.read(_find_start(file, info), info.file_size)
    if info.CRC and isal_zlib.crc32(data) != info.CRC:
        raise damaged_record_error(file.path, info, tr("its checksum (CRC-32) is another one"))
    return data


def _find_start(file: InputFile, info: zipfile.ZipInfo) -> int:
    """Where the data of a record begins: behind a header of its own."""
    header = file.read(info.header_offset, _LOCAL_HEADER.size)
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if magic != MAGIC:
        raise damaged_record_error(file.path, info, tr("no record begins where the directory says"))
    return info.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)


def _locate(
    file: InputFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo, offload: Offload | None
) -> StorageLocation:
    if is_stored(info):
        return StorageLocation(file, _find_start(file, info), info.file_size, info.CRC)
    if offload is None:
        raise FormatError(
            tr("the archive is compressed, so its tensors cannot be read where they are"),
            file=file.path,
            remedy=tr("give a folder with room to unpack it (--offload_dir)"),
        )
    return StorageLocation(_unpack(file, archive, info, offload), 0, info.file_size)


def _unpack(
    file: InputFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo, offload: Offload
) -> InputFile:
    """Unpack one compressed storage and return the file that holds it."""
    require_space(offload.ensure_folder(), info.file_size)
    # Two adapters have files of one name, so the name here must be a new one.
    handle, name = tempfile.mkstemp(".storage", f"{file.path.name}.", offload.ensure_folder())
    with os.fdopen(handle, "wb") as sink:
        for piece in iter_chunks(file.path, archive, info):
            sink.write(piece)
    return InputFile(Path(name))


class TorchZipWriter(ContainerWriter):
    """Writes named tensors as ``torch.save`` would, in one sequential stream.

    Every tensor is contiguous and has a storage of its own, on the CPU. Bytes depend on names,
    dtypes, shapes and data alone.
    """

    def __init__(self, stream: BinaryIO, tensors: Sequence[TensorInfo]) -> None:
        super().__init__(tensors)
        self._archive = ZipStream(stream)
        self._write_record("data.pkl", _pickle_tensors(tensors))
        self._write_record("byteorder", b"little")

    def _iter_sinks(self) -> Iterator[Sink]:
        for key, tensor in enumerate(self.tensors):
            self._archive.begin(f"{_ARCHIVE}/data/{key}", tensor.nbytes, _ALIGNMENT)
            yield self._archive
            self._archive.end()

    @property
    def tensor_crcs(self) -> tuple[int, ...]:
        return self._archive.crcs[_RECORDS_BEFORE : _RECORDS_BEFORE + self._current]

    def _skip_current(self, crc: int) -> None:
        self._archive.skip(self._left, crc)
        super()._skip_current(crc)

    def _finish(self) -> None:
        self._write_record("version", b"3\n")
        self._archive.finish()

    def _write_record(self, name: str, data: bytes) -> None:
        self._archive.begin(f"{_ARCHIVE}/{name}", len(data), _ALIGNMENT)
        self._archive.write(data)
        self._archive.end()


class _Storage:
    """Stands in the pickle for the storage of one tensor."""

    def __init__(self, key: int, tensor: TensorInfo) -> None:
        self.persistent_id = (
            "storage",
            _STORAGE_TYPES[tensor.dtype],
            str(key),
            "cpu",
            tensor.elements,
        )


class _Tensor:
    """Pickles to a call of the function by which torch rebuilds a tensor from its storage."""

    def __init__(self, key: int, tensor: TensorInfo) -> None:
        self._storage = _Storage(key, tensor)
        self._shape = tensor.shape

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        strides = get_contiguous_strides(self._shape)
        return _REBUILD, (self._storage, 0, self._shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.persistent_id if isinstance(obj, _Storage) else None


def _pickle_tensors(tensors: Sequence[TensorInfo]) -> bytes:
    """Pickle ``{name: tensor}`` with storages as persistent ids, in protocol 2 like torch.save."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump({t.name: _Tensor(k, t) for k, t in enumerate(tensors)})
    return buffer.getvalue()
