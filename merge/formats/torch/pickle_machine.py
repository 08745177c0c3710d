"""A pickle machine that makes nothing but plain values and descriptions of tensors.

There is no way from a pickle to a Python function: see ``saved_objects.py`` for what becomes of a
name. Work is bounded too, which torch's own weights-only unpickler does not promise: there a pickle
of thirty bytes asks for gigabytes, and tuples within tuples end the process when one is a key.

Every pickle protocol is read. The instructions are decoded by ``pickletools``.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any, BinaryIO, cast

from ...messages import tr
from .saved_objects import (
    BrokenPickleError,
    GlobalName,
    OpaqueObject,
    SavedStorage,
    SavedTensor,
    is_count,
    resolve_global,
    resolve_reduce,
)

# A LLaMA 65B needs 150 KB and 40,000 instructions.
MOST_BYTES = 16 << 20
_MOST_INSTRUCTIONS = 400_000
_MOST_BITS = 64
# Begins files from before torch 1.6, and has 80 bits.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


class DuplicateKeyError(Exception):
    """A mapping in the pickle has one key twice."""


class _OpaqueKey:
    """Stands for a key that is neither text nor a number."""


class PickleMachine:
    """Runs the instructions of one pickle; ``storages`` are those that it spoke of, by key."""

    def __init__(self) -> None:
        self.storages: dict[str, SavedStorage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._items = 0

    def load(self, stream: BinaryIO) -> Any:
        """The object of the pickle that ``stream`` is at; the stream is then behind it.

        Raises ``BrokenPickleError``, ``ForbiddenCallError`` and ``DuplicateKeyError``.
        """
        limited = cast(IO[bytes], _LimitedStream(stream))
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(limited)):
                if count == _MOST_INSTRUCTIONS:
                    raise BrokenPickleError(
                        tr(
                            "more than {most_instructions:,} instructions",
                            most_instructions=_MOST_INSTRUCTIONS,
                        )
                    )
                self._step(opcode.name, argument)
            (value,) = self._pop(1)
        # What follows from instructions that do not fit together.
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            struct.error,
        ) as error:
            raise BrokenPickleError(str(error) or type(error).__name__) from None
        return value

    def _step(self, name: str, argument: Any) -> None:
        if rule := _RULES.get(name):
            rule(self, argument)
        elif name in _VALUES:
            self._stack.append(_make_plain(name, argument))
        elif name not in _NOTHING:
            raise BrokenPickleError(
                tr("the instruction {name}, which torch.save does not write", name=name)
            )

    def _pop(self, count: int) -> tuple[Any, ...]:
        """Take the last ``count`` values, but none from before the last mark."""
        start = len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise BrokenPickleError(tr("the stack is empty"))
        values = tuple(self._stack[start:])
        del self._stack[start:]
        return values

    def _pop_to_mark(self) -> tuple[Any, ...]:
        start = self._marks[-1]
        values = self._pop(len(self._stack) - start)
        self._marks.pop()
        return values

    def _peek(self) -> Any:
        (value,) = self._pop(1)
        self._stack.append(value)
        return value

    def _push_global(self) -> None:
        module, name = self._pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise BrokenPickleError(tr("a name that is not text"))
        self._stack.append(resolve_global(module, name))

    def _call(self) -> None:
        function, arguments = self._pop(2)
        if function == GlobalName("collections.OrderedDict") and isinstance(arguments, tuple):
            self._stack.append({})
            for items in arguments:
                self._set_items(tuple(part for key, value in items for part in (key, value)))
        else:
            self._stack.append(resolve_reduce(function, arguments))

    def _build(self) -> None:
        """Attributes that are set on an object, such as a state dict's versions: left out."""
        target, _ = self._pop(2)
        if not isinstance(target, (dict, OpaqueObject, SavedTensor)):
            raise BrokenPickleError(tr("attributes set on a {name}", name=type(target).__name__))
        self._stack.append(target)

    def _set_items(self, items: tuple[Any, ...]) -> None:
        target = self._peek()
        self._items += len(items)  # one list may be asked for again and again
        if self._items > _MOST_INSTRUCTIONS:
            raise BrokenPickleError(
                tr("more than {most_instructions:,} items", most_instructions=_MOST_INSTRUCTIONS)
            )
        if isinstance(target, OpaqueObject):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise BrokenPickleError(tr("items that do not fit where they are put"))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others are kept apart by identity: to hash a tuple may take forever.
            plain = (
                key if key is None or isinstance(key, (str, int, float, bytes)) else _OpaqueKey()
            )
            if plain in target:
                raise DuplicateKeyError(str(plain))
            target[plain] = value

    def _append(self, items: tuple[Any, ...]) -> None:
        target = self._peek()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, OpaqueObject):
            raise BrokenPickleError(tr("items that do not fit where they are put"))

    def _remember(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._peek()

    def _push_storage(self) -> None:
        """Find the storage that ``("storage", type, key, device, elements, view)`` speaks of."""
        (saved_id,) = self._pop(1)
        if not isinstance(saved_id, tuple) or len(saved_id) not in (5, 6):
            raise BrokenPickleError(tr("an unknown kind of persistent id"))
        kind, storage_type, key, _device, elements = saved_id[:5]
        dtype = storage_type.storage_dtype if isinstance(storage_type, GlobalName) else None
        if kind != "storage" or dtype is None or any(part is not None for part in saved_id[5:]):
            raise BrokenPickleError(tr("an unknown kind of persistent id"))
        if not isinstance(key, str) or not is_count(elements):
            raise BrokenPickleError(tr("a storage without a key or a size"))
        storage = SavedStorage(key, dtype, elements)
        if self.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise BrokenPickleError(tr("a storage with two sizes"))
        self._stack.append(storage)


class _LimitedStream:
    """As much of a stream as a pickle may have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = MOST_BYTES

    def read(self, count: int) -> bytes:
        self._take(count)
        return self._stream.read(count)

    def readline(self) -> bytes:
        line = self._stream.readline(self._left + 1)
        self._take(len(line))
        return line

    def _take(self, count: int) -> None:
        if count > self._left:
            raise BrokenPickleError(
                tr(
                    "more than {most_bytes} MiB, or a length that is wrong",
                    most_bytes=MOST_BYTES >> 20,
                )
            )
        self._left -= count


def _make_plain(name: str, argument: Any) -> Any:
    if name in _CONSTANTS:
        return _CONSTANTS[name]()
    if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
        return argument if argument == MAGIC_NUMBER else OpaqueObject(tr("a number beyond 64 bits"))
    if name == "SHORT_BINSTRING":  # text of Python 2; pickletools cannot know in which encoding
        return argument.encode("latin-1").decode("utf-8")
    return argument


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: OpaqueObject("set"),
}
_VALUES = frozenset(_CONSTANTS) | {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})
_RULES: dict[str, Callable[[PickleMachine, Any], object]] = {
    "GLOBAL": lambda m, names: m._stack.append(resolve_global(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m._push_global(),
    "REDUCE": lambda m, _: m._call(),
    "NEWOBJ": lambda m, _: m._call(),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._push_storage(),
    "MARK": lambda m, _: m._marks.append(len(m._stack)),
    "APPEND": lambda m, _: m._append(m._pop(1)),
    "APPENDS": lambda m, _: m._append(m._pop_to_mark()),
    "ADDITEMS": lambda m, _: m._append(m._pop_to_mark()),
    "SETITEM": lambda m, _: m._set_items(m._pop(2)),
    "SETITEMS": lambda m, _: m._set_items(m._pop_to_mark()),
    "TUPLE": lambda m, _: m._stack.append(m._pop_to_mark()),
    "TUPLE1": lambda m, _: m._stack.append(m._pop(1)),
    "TUPLE2": lambda m, _: m._stack.append(m._pop(2)),
    "TUPLE3": lambda m, _: m._stack.append(m._pop(3)),
    "BINPUT": PickleMachine._remember,
    "LONG_BINPUT": PickleMachine._remember,
    "MEMOIZE": lambda m, _: m._remember(None),
    "BINGET": lambda m, index: m._stack.append(m._memo[index]),
    "LONG_BINGET": lambda m, index: m._stack.append(m._memo[index]),
}
