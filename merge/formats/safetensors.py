"""safetensors: a JSON header with names, dtypes, shapes and offsets, then the data.

The header is validated by the safetensors library (sizes, overlaps, gaps); the data is read by
position. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from ..errors import FormatError
from ..messages import tr
from ..storage.input_file import InputFile
from ..tensors.lazy import LazyTensor
from ..untrusted.strict_json import parse_json
from .container import ContainerWriter, Sink, TensorInfo
from .file_tensor import FileTensor, get_contiguous_strides

_HEADER_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
# The library takes 100 MB. A LLaMA 65B has 100 KB; a mixture of experts a few MB.
_MOST_BYTES = 16 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read(file: InputFile) -> dict[str, LazyTensor]:
    """Return the tensors of a file, by name, without reading their data.

    Raises ``FormatError`` for a file that the safetensors library refuses and for unknown dtypes.
    """
    head = file.read(0, min(file.size, _HEADER_LENGTH.size))
    length = int.from_bytes(head, "little")
    if length > _MOST_BYTES:
        raise FormatError(
            tr("this is not a safetensors file"),
            file=file.path,
            expected=tr("a header of at most {most_bytes:,} bytes", most_bytes=_MOST_BYTES),
            found=tr(
                "{length:,} bytes, by {head!r}, in a file of {size:,} bytes",
                length=length,
                head=head,
                size=file.size,
            ),
            remedy=tr("another file under this name, or a damaged one: fetch the file again"),
        )
    text = file.read(len(head), min(length, file.size - len(head)))
    try:
        with (
            _make_local(file, head + text) as path,
            safe_open(str(path), framework="np"),  # torch would map the file to write
        ):
            pass
    except SafetensorError as error:
        raise FormatError(
            tr("this is not a whole safetensors file"),
            file=file.path,
            found=tr("{size:,} bytes ({error})", size=file.size, error=error),
            remedy=tr("an unfinished download or copy: fetch the file again"),
        ) from None
    header = parse_json(text, file.path)
    header.pop("__metadata__", None)
    start = _HEADER_LENGTH.size + length
    return {name: _open_tensor(file, name, entry, start) for name, entry in header.items()}


@contextmanager
def _make_local(file: InputFile, head: bytes) -> Iterator[Path]:
    """The file itself; for one behind a URL an empty one of its size with its ``head``, which takes
    no room on the disk.
    """
    if not file.is_remote:
        yield file.path
        return
    with TemporaryDirectory() as folder:
        path = Path(folder, file.path.name)
        with path.open("wb") as stream:
            stream.write(head)
            stream.truncate(file.size)
        yield path


def _open_tensor(file: InputFile, name: str, entry: dict[str, object], start: int) -> FileTensor:
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    assert isinstance(shape, list)  # the library has validated the header
    assert isinstance(offsets, list)
    if kind not in _DTYPES:
        raise FormatError(
            tr("the tensor has a dtype that is not supported"),
            file=file.path,
            tensor=name,
            expected=", ".join(_DTYPES),
            found=kind,
            remedy=tr("convert the file to float16, bfloat16 or float32 first"),
        )
    origin = f"{file.path.name}: {name}"
    place = start + offsets[0]
    dtype = _DTYPES[str(kind)]
    return FileTensor(
        tuple(shape), dtype, origin, file, place, get_contiguous_strides(tuple(shape))
    )


class SafetensorsWriter(ContainerWriter):
    """Writes named tensors as one safetensors stream, data in the order given."""

    def __init__(self, stream: BinaryIO, tensors: Sequence[TensorInfo]) -> None:
        super().__init__(tensors)
        self._stream = stream
        header = _build_header(tensors)
        stream.write(_HEADER_LENGTH.pack(len(header)) + header)

    def _iter_sinks(self) -> Iterator[Sink]:
        for _ in self.tensors:
            yield self._stream

    def _finish(self) -> None:
        """Nothing follows the data."""


def _build_header(tensors: Sequence[TensorInfo]) -> bytes:
    # transformers refuses files without this metadata
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)
