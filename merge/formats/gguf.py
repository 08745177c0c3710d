"""GGUF: llama.cpp's container. Metadata and tensor infos, then the data, each tensor aligned.

Read here without the ``gguf`` package, which maps files and trusts their headers; written with the
header that the package makes (see ``layouts/gguf/output.py``).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import torch

from ..errors import FormatError
from ..messages import tr
from ..storage.input_file import InputFile
from ..tensors.lazy import LazyTensor, get_dtype_name
from .blocks import BlockTensor
from .container import ContainerWriter, Sink, TensorInfo
from .file_tensor import FileTensor, get_contiguous_strides
from .ggml import BLOCKS, TYPE_NUMBERS, count_row_bytes

MAGIC = b"GGUF"
ALIGNMENT = 32

_ALIGNMENT_KEY = "general.alignment"
_VERSIONS = (2, 3)
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, _ARRAY = 8, 9
_PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
_IN_BLOCKS = {number: kind for kind, number in TYPE_NUMBERS.items()}
# Names of types for messages: those in blocks, and others that files in circulation hold.
_TYPE_NAMES = {
    **_IN_BLOCKS,
    **{9: "Q8_1", 15: "Q8_K", 28: "F64", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}
_MOST_DIMENSIONS = 4
_LARGEST = 1 << 40
_WINDOW = 1 << 18
# Far more than any vocabulary has; beyond it a header is noise that must not fill the memory.
_LONGEST_VALUE = 1 << 24

ValueType = tuple[int, int | None]
"""GGUF's number for the type of a value, and for that of the entries where it is a list."""


@dataclass(frozen=True)
class GgufFile:
    """What a file holds: its metadata by key, and its tensors by their names there.

    Shapes are in rows and columns, the reverse of how ggml counts dimensions. ``types`` are those
    of the metadata, by key.
    """

    metadata: dict[str, Any]
    tensors: dict[str, LazyTensor]
    types: dict[str, ValueType] = field(default_factory=dict)


def get_type_name(tensor: LazyTensor) -> str:
    """What a file holds a tensor in: its dtype by name, or such as ``q8_0``, read as float32."""
    if isinstance(tensor, BlockTensor):
        return tensor.kind.lower()
    return get_dtype_name(tensor.dtype)


def split_stack(tensor: LazyTensor) -> list[LazyTensor]:
    """The matrices of a tensor of a file along its first axis, each where it lies in the file."""
    if isinstance(tensor, BlockTensor):
        blocks, shape = split_stack(tensor.blocks), tensor.shape[1:]
        return [replace(tensor, shape=shape, origin=b.origin, blocks=b) for b in blocks]
    assert isinstance(tensor, FileTensor), "tensors of a file are read where they lie"
    return [
        replace(
            tensor,
            shape=tensor.shape[1:],
            origin=f"{tensor.origin}, number {number}",
            offset=tensor.offset + number * tensor.row_bytes,
            strides=get_contiguous_strides(tensor.shape[1:]),
        )
        for number in range(tensor.rows)
    ]


def read(file: InputFile, any_quantized: bool = False) -> GgufFile:
    """Return metadata and tensors of a file, from its header alone.

    f32, f16 and bf16 come as they are, q8_0 as float32, and so do other quantized types with
    ``any_quantized``. Raises ``FormatError`` for other types, for headers that promise more than
    the file holds, and for files of another version or byte order.
    """
    cursor = _Cursor(file)
    tensor_count, value_count = _read_counts(cursor)
    values = dict(
        _refuse_repeated(cursor, (_read_key_value(cursor) for _ in range(value_count)), "key")
    )
    metadata = {key: value for key, (value, _) in values.items()}
    infos = dict(
        _refuse_repeated(cursor, (_read_tensor_info(cursor) for _ in range(tensor_count)), "tensor")
    )
    alignment = metadata.get(_ALIGNMENT_KEY, ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged_error(tr("an alignment of {alignment!r}", alignment=alignment))
    start = -(-cursor.position // alignment) * alignment
    kinds = _IN_BLOCKS if any_quantized else {TYPE_NUMBERS["Q8_0"]: "Q8_0"}
    tensors = {name: _open_tensor(file, name, info, start, kinds) for name, info in infos.items()}
    return GgufFile(metadata, tensors, {key: kind for key, (_, kind) in values.items()})


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of metadata, after the file has shown to be what it should be."""
    if cursor.take(4) != MAGIC:
        raise cursor.damaged_error(tr("another beginning than GGUF"))
    version = cursor.read_number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise FormatError(
            tr("this kind of GGUF file is not supported"),
            file=cursor.file.path,
            expected=tr("version 2 or 3, little-endian"),
            found=tr("big-endian") if swapped else tr("version {version}", version=version),
            remedy=tr("convert it again with a current llama.cpp"),
        )
    return cursor.read_number("Q"), cursor.read_number("Q")


def _refuse_repeated(
    cursor: _Cursor, pairs: Iterator[tuple[str, Any]], kind: str
) -> Iterator[tuple[str, Any]]:
    seen = set()
    for name, value in pairs:
        if name in seen:
            raise cursor.damaged_error(tr("the {kind} {name!r} twice", kind=kind, name=name))
        seen.add(name)
        yield name, value


def _read_key_value(cursor: _Cursor) -> tuple[str, tuple[Any, ValueType]]:
    key, kind = cursor.read_text(), cursor.read_number("I")
    if kind != _ARRAY:
        return key, (cursor.read_value(kind), (kind, None))
    entry = cursor.read_number("I")
    return key, (cursor.read_array(entry, cursor.read_number("Q")), (kind, entry))


def _read_tensor_info(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    name = cursor.read_text()
    dimensions = cursor.read_number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.damaged_error(
            tr("{dimensions} dimensions for {name!r}", dimensions=dimensions, name=name)
        )
    shape = tuple(cursor.read_number("Q") for _ in range(dimensions))[::-1]
    if not all(0 < size < _LARGEST for size in shape):
        raise cursor.damaged_error(tr("the shape {shape} for {name!r}", shape=shape, name=name))
    return name, (shape, cursor.read_number("I"), cursor.read_number("Q"))


def _open_tensor(
    file: InputFile,
    name: str,
    info: tuple[tuple[int, ...], int, int],
    start: int,
    kinds: Mapping[int, str],
) -> LazyTensor:
    shape, kind, offset = info
    origin = f"{file.path.name}: {name}"
    place = start + offset
    if kind in _PLAIN:
        return _make_tensor(file, shape, _PLAIN[kind], origin, place)
    if kind in kinds and len(shape) > 1 and shape[-1] % BLOCKS[kinds[kind]][0] == 0:
        width = count_row_bytes(kinds[kind], shape[-1])
        blocks = _make_tensor(file, (*shape[:-1], width), torch.uint8, origin, place)
        return BlockTensor(shape, torch.float32, origin, blocks, kinds[kind])
    raise FormatError(
        tr("the tensor has a type that is not supported"),
        file=file.path,
        tensor=name,
        expected=tr("f32, f16, bf16 or ") + ", ".join(kinds.values()).lower(),
        found=tr(
            "{kind}, shape {shape}",
            kind=_TYPE_NAMES.get(kind, tr("type {kind}", kind=kind)),
            shape=shape,
        ),
        remedy=tr("take the file from which this one was quantized"),
    )


def _make_tensor(
    file: InputFile, shape: tuple[int, ...], dtype: torch.dtype, origin: str, place: int
) -> FileTensor:
    tensor = FileTensor(shape, dtype, origin, file, place, get_contiguous_strides(shape))
    if (end := place + tensor.nbytes) > file.size:
        raise file.cut_off_error(end, origin)
    return tensor


class _Cursor:
    """Reads a header from its beginning on, never beyond the end of the file."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.position = 0
        self._window = b""
        self._window_start = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > min(_LONGEST_VALUE, self.file.size - self.position):
            raise self.damaged_error(tr("a value of {count:,} bytes", count=count))
        first = self.position - self._window_start
        if first + count > len(self._window):
            size = min(max(count, _WINDOW), self.file.size - self.position)
            self._window, self._window_start = self.file.read(self.position, size), self.position
            first = 0
        self.position += count
        return self._window[first : first + count]

    def read_number(self, code: str) -> Any:
        """One number of a ``struct`` code."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def read_text(self) -> str:
        """A string: its length, then UTF-8."""
        data = self.take(self.read_number("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged_error(
                tr("text that is not UTF-8: {data!r}", data=data[:20])
            ) from None

    def read_value(self, kind: int) -> Any:
        """A number or a string of the metadata."""
        if kind in _SCALARS:
            return self.read_number(_SCALARS[kind])
        if kind == STRING:
            return self.read_text()
        raise self.damaged_error(tr("metadata of type {kind}", kind=kind))

    def read_array(self, kind: int, count: int) -> list[Any]:
        """A list of ``count`` numbers or strings."""
        if count > _LONGEST_VALUE:
            raise self.damaged_error(tr("a list of {count:,} values", count=count))
        if kind == STRING:
            return [self.read_text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.damaged_error(tr("a list of type {kind}", kind=kind))
        code = _SCALARS[kind]
        data = self.take(count * struct.calcsize("<" + code))
        return list(struct.unpack(f"<{count}{code}", data))

    def damaged_error(self, found: str) -> FormatError:
        """The error for a header that cannot be."""
        return FormatError(
            tr("this is not a whole GGUF file"),
            file=self.file.path,
            found=tr(
                "{found} at byte {position:,} of {size:,}",
                found=found,
                position=self.position,
                size=self.file.size,
            ),
            remedy=tr("an unfinished download or copy, or another kind of file: fetch it again"),
        )


class GgufWriter(ContainerWriter):
    """Writes the data that follows a header, each tensor padded to the alignment.

    The header comes from the plan, because it says more than names, shapes and dtypes.
    """

    def __init__(self, stream: BinaryIO, tensors: Sequence[TensorInfo]) -> None:
        super().__init__(tensors)
        self._stream = stream

    def _iter_sinks(self) -> Iterator[Sink]:
        for tensor in self.tensors:
            yield self._stream
            self._stream.write(bytes(-tensor.nbytes % ALIGNMENT))

    def _finish(self) -> None:
        """Nothing follows the last tensor's padding."""
