"""What a pickle that ``torch.save`` wrote speaks of: tensors, and the names of torch's functions.

A name selects one of the rules in ``_CALLS``, or stays a name. None of them makes a tensor; they
take note of what the pickle says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...messages import tr

# The classes by which a pickle names a storage's dtype.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}
_STORAGE_NAME = re.compile(rf"torch\.(?:(?:cuda|storage)\.)?({'|'.join(STORAGES)})")
_DTYPES = {f"torch.{name}": it for name, it in vars(torch).items() if isinstance(it, torch.dtype)}
# Names that torch.load(weights_only=True) lets in and that stay names here: what they make is no
# dense tensor, and nobody needs it.
_HARMLESS = re.compile(
    r"collections\.Counter|_codecs\.encode|builtins\.(bytearray|set|complex)"
    r"|torch\.(device|per_(tensor|channel)_\w+|nn\.parameter\.Parameter)"
    r"|torch\.((cuda|sparse|cuda\.sparse)\.)?\w*Tensor"
    r"|torch\._utils\._rebuild_(qtensor|nested_tensor|wrapper_subclass"
    r"|device_tensor_from_(numpy|cpu_tensor))"
)
_PYTHON_2 = {"__builtin__": "builtins"}
_MOST_DIMENSIONS = 64


class BrokenPickleError(Exception):
    """The pickle is cut off, damaged, or larger than any checkpoint's."""


class ForbiddenCallError(Exception):
    """The pickle names a function or class that weights never need."""


@dataclass(frozen=True)
class GlobalName:
    """A class or function as the pickle names it."""

    path: str

    @property
    def storage_dtype(self) -> torch.dtype | None:
        """The dtype that a class of storages stands for."""
        match = _STORAGE_NAME.fullmatch(self.path)
        return STORAGES[match[1]] if match else None


@dataclass(frozen=True)
class OpaqueObject:
    """Something in the pickle that was not made, by what it would have been."""

    kind: str


@dataclass(frozen=True)
class SavedStorage:
    """Where a pickle says data is: ``elements`` of ``dtype`` under ``key``."""

    key: str
    dtype: torch.dtype
    elements: int

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class SavedTensor:
    """A dense tensor as a pickle describes it; counts are in elements.

    ``storage`` is None for a tensor that was saved without data, on the device ``meta``.
    """

    storage: SavedStorage | None
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def resolve_global(module: str, name: str) -> GlobalName | torch.dtype:
    """What a name in a pickle stands for. Raises ``ForbiddenCallError`` for what is not known."""
    path = f"{_PYTHON_2.get(module, module)}.{name}"
    if path in _DTYPES:
        return _DTYPES[path]
    known = path in _CALLS or _STORAGE_NAME.fullmatch(path) or _HARMLESS.fullmatch(path)
    if not known:
        raise ForbiddenCallError(path)
    return GlobalName(path)


def resolve_reduce(function: object, arguments: object) -> Any:
    """What a call in a pickle stands for; nothing is called but the rules below."""
    if not isinstance(function, GlobalName):
        raise ForbiddenCallError(
            tr("something that is not a function ({name})", name=type(function).__name__)
        )
    if not isinstance(arguments, tuple):
        raise BrokenPickleError(tr("a call without arguments"))
    rule = _CALLS.get(function.path)
    return rule(*arguments) if rule else OpaqueObject(function.path)


def is_count(value: object) -> bool:
    """Whether a value can be a size, a stride or a number of elements."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _parse_counts(value: object) -> tuple[int, ...]:
    few = isinstance(value, (tuple, list)) and len(value) <= _MOST_DIMENSIONS
    if not few or not all(map(is_count, value)):  # type: ignore[call-overload]
        raise BrokenPickleError(tr("a tensor whose shape or strides are not counts"))
    return tuple(value)  # type: ignore[arg-type]


def _describe_tensor(
    storage: SavedStorage | None, dtype: object, offset: object, shape: object, strides: object
) -> SavedTensor:
    if not isinstance(dtype, torch.dtype) or not is_count(offset):
        raise BrokenPickleError(tr("a tensor without a dtype or a place"))
    sizes, steps = _parse_counts(shape), _parse_counts(strides)
    if len(sizes) != len(steps):
        raise BrokenPickleError(tr("a tensor with more sizes than strides, or fewer"))
    return SavedTensor(storage, dtype, offset, sizes, steps)  # type: ignore[arg-type]


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object) -> SavedTensor:
    if not isinstance(storage, SavedStorage):
        raise BrokenPickleError(tr("a tensor without a storage"))
    return _describe_tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _grad: object,
    _hooks: object,
    _metadata: object = None,
) -> SavedTensor:
    return _rebuild_tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    _metadata: object = None,
) -> SavedTensor:
    if not isinstance(storage, SavedStorage):
        raise BrokenPickleError(tr("a tensor without a storage"))
    return _describe_tensor(storage, dtype, offset, shape, strides)


def _rebuild_meta_tensor(
    dtype: object, shape: object, strides: object, _grad: object
) -> SavedTensor:
    return _describe_tensor(None, dtype, 0, shape, strides)


def _rebuild_from_type(function: object, _type: object, arguments: object, _state: object) -> Any:
    """A tensor with attributes, which are left out."""
    if not isinstance(function, GlobalName) or function.path not in _REBUILDS:
        raise BrokenPickleError(tr("a tensor that nothing rebuilds"))
    return resolve_reduce(function, arguments)


def _rebuild_parameter(tensor: object, *_: object) -> SavedTensor:
    if not isinstance(tensor, SavedTensor):
        raise BrokenPickleError(tr("a parameter that is not a tensor"))
    return tensor


def _get_layout(name: object) -> OpaqueObject:
    return OpaqueObject(name if isinstance(name, str) else "layout")


def _describe_sparse(layout: object, *_: object) -> OpaqueObject:
    return layout if isinstance(layout, OpaqueObject) else OpaqueObject("sparse")


_REBUILDS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta_tensor,
    "torch._utils._rebuild_sparse_tensor": _describe_sparse,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_CALLS: dict[str, Callable[..., Any]] = _REBUILDS | {
    "collections.OrderedDict": dict,  # the machine fills it
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.serialization._get_layout": _get_layout,
    "torch.Size": _parse_counts,
}
