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
from ..messages import tr
from ..settings import IoMode
from ..untrusted.placeholders import HEAD_BYTES, refuse_placeholder
from .direct_io import SMALLEST_READ, DirectReader, is_cached
from .remote_file import RemoteFile
from .remote_path import RemotePath


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
        self._remote = RemoteFile(path) if isinstance(path, RemotePath) else None
        self.path = path
        self.size = path.stat().st_size

    @property
    def is_remote(self) -> bool:
        """Whether it is behind a URL."""
        return self._remote is not None

    def read_into(self, buffer: memoryview, offset: int, until: int | None = None) -> None:
        """Fill ``buffer`` from byte ``offset`` on.

        ``until`` is where the caller's further reads of equal size will end: over a network they
        are fetched ahead. Raises ``FormatError`` when the file ends before that.
        """
        if self._remote is not None and buffer:
            raise_if_interrupted()
            if offset + len(buffer) > self.size:
                raise self.cut_off_error(offset + len(buffer))
            self._remote.read_into(buffer, offset, until)
            return
        done = 0
        while done < len(buffer):
            raise_if_interrupted()
            try:
                count = self._read_some(buffer[done:], offset + done)
            except OSError as error:
                error.filename = str(self.path)  # which reads by position do not say
                raise
            if count == 0:
                raise self.cut_off_error(offset + len(buffer))
            done += count

    def cut_off_error(self, needed: int, tensor: str | None = None) -> FormatError:
        """The error for a file that should have ``needed`` bytes and has fewer."""
        return FormatError(
            tr("the file ends before its tensors do: an unfinished download or copy"),
            file=self.path,
            tensor=tensor,
            expected=tr("at least {needed:,} bytes", needed=needed),
            found=tr("{size:,} bytes", size=self.size),
            remedy=tr("fetch or copy the file again"),
        )

    def read(self, offset: int, count: int) -> bytes:
        """Read exactly ``count`` bytes from ``offset`` on."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_head(self) -> bytes:
        """Read the first bytes, by which the kind of file is known.

        Raises ``FormatError`` for what stands where weights should be: an empty file, or a Git LFS
        pointer.
        """
        head = self.read(0, min(self.size, HEAD_BYTES))
        refuse_placeholder(self.path, head)
        return head

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        handle = self._open()
        if self.positioned:
            count = 0
            if len(buffer) >= SMALLEST_READ and self._bypasses_cache(handle):
                count = self._direct.read_into(buffer, offset)
            return count or os.preadv(handle.fileno(), [buffer], offset)
        with self._lock:  # the place in the file is shared
            handle.seek(offset)
            return handle.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def _bypasses_cache(self, handle: BinaryIO) -> bool:
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
        if self._remote is not None:
            self._remote.close()
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def __del__(self) -> None:
        """Close what nobody reads any more: tensors share the file, and none of them owns it."""
        self.close()


def view_as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor as bytes, without a copy."""
    flat = tensor.detach().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
