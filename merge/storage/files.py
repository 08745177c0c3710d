"""Bytes on disk: positioned reads that any thread may make.

Mapped pages count as resident memory, so nothing is mapped; every read has a position, so readers
share a file without sharing a place in it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import FormatError
from ..interruption import raise_if_interrupted
from ..settings import IoMode
from .direct_io import SMALLEST_READ, DirectReader, is_cached

_LFS_POINTER = b"version https://git-lfs"


class InputFile:
    """A file read by position. Opened on the first read and closed with the object."""

    positioned = hasattr(os, "preadv")
    """Whether the system reads at a position; Windows does not, so there readers take turns."""

    def __init__(self, path: Path, io: IoMode = "auto") -> None:
        self._handle: BinaryIO | None = None
        self._lock = threading.Lock()
        self._io = io
        self._direct = DirectReader(path)
        self._cached: bool | None = None
        self.path = path
        self.size = path.stat().st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from byte ``offset`` on.

        Raises ``FormatError`` when the file ends before that.
        """
        done = 0
        while done < len(buffer):
            raise_if_interrupted()
            try:
                count = self._read_some(buffer[done:], offset + done)
            except OSError as error:
                error.filename = str(self.path)  # which reads by position do not say
                raise
            if count == 0:
                raise FormatError(
                    "the file ends before its tensors do: an unfinished download or copy",
                    file=self.path,
                    expected=f"at least {offset + len(buffer):,} bytes",
                    found=f"{self.size:,} bytes",
                    remedy="fetch or copy the file again",
                )
            done += count

    def read(self, offset: int, count: int) -> bytes:
        """Read exactly ``count`` bytes from ``offset`` on."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        handle = self._open()
        if self.positioned:
            count = 0
            if len(buffer) >= SMALLEST_READ and self._goes_past_cache(handle):
                count = self._direct.read_into(buffer, offset)
            return count or os.preadv(handle.fileno(), [buffer], offset)
        with self._lock:  # the place in the file is shared
            handle.seek(offset)
            return handle.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def _goes_past_cache(self, handle: BinaryIO) -> bool:
        if self._io == "auto" and self._cached is None:
            self._cached = is_cached(handle.fileno(), self.size)
        return self._io == "direct" or (self._io == "auto" and not self._cached)

    def _open(self) -> BinaryIO:
        with self._lock:
            if self._handle is None:
                self._handle = self.path.open("rb", buffering=0)
            return self._handle

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._direct.close()
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def __del__(self) -> None:
        """Close what nobody reads any more: tensors share the file, and none of them owns it."""
        self.close()


def refuse_placeholder(file: InputFile) -> None:
    """Refuse what stands where weights should be: an empty file or a Git LFS pointer."""
    head = file.read(0, min(file.size, len(_LFS_POINTER)))
    if not head:
        raise FormatError(
            "the file is empty", file=file.path, remedy="fetch or copy the file again"
        )
    if head == _LFS_POINTER:
        raise FormatError(
            "this is a Git LFS pointer, a few lines of text in place of the weights",
            file=file.path,
            found=f"{file.size} bytes of text",
            remedy="run `git lfs pull` in that folder, or download the file itself",
        )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor as bytes, without a copy."""
    flat = tensor.detach().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
