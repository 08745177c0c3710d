"""Files that are written once, front to back, bypassing the page cache where that is possible."""

from __future__ import annotations

import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..settings import IoMode
from .direct_io import PAGE, allocate_aligned, open_direct
from .open_flags import NO_FOLLOW

if TYPE_CHECKING:
    from hashlib import _Hash as Sha256


@dataclass(frozen=True)
class StreamState:
    """The beginning of a file that is there already: its length, and SHA-256 of that so far."""

    nbytes: int
    sha256: Sha256


class OutputStream(io.RawIOBase):
    """A file written once, front to back, and SHA-256 of it.

    Two aligned buffers take turns: one is filled while the other is on its way to the disk and
    through the digest. Past the page cache (``direct``) the last, partial page is written whole and
    cut off afterwards.

    ``digests`` are SHA-256 of the file up to the places that were marked, by place; they come when
    the bytes are on their way. ``state`` is the part of the file that exists already.
    """

    def __init__(
        self,
        handle: int,
        buffers: list[torch.Tensor],
        direct: bool,
        state: StreamState | None = None,
    ) -> None:
        self._handle = handle
        self._size = len(buffers[0])
        self._direct = direct
        self._buffers = buffers
        self._filled = 0
        self._length = 0
        self._sha256 = state.sha256.copy() if state else sha256()
        self.path: str | None = None
        self._pool = ThreadPoolExecutor(2)
        self._pending: tuple[Future[None], ...] = ()
        self._digested = 0
        self._marks: list[int] = []
        self.digests: dict[int, str] = {}
        if state is not None:
            self._resume(state)

    def _resume(self, state: StreamState) -> None:
        """Cut the file to what is to stay; a last, partial page is to be written again."""
        os.ftruncate(self._handle, state.nbytes)
        self._length = state.nbytes
        self._digested = state.nbytes
        os.lseek(self._handle, state.nbytes, os.SEEK_SET)

    def restore_tail(self, tail: bytes) -> None:
        """Take the last bytes of the file once more: direct writes begin on a page."""
        self._length -= len(tail)
        os.lseek(self._handle, self._length, os.SEEK_SET)
        self._fill(memoryview(tail))

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._handle

    def tell(self) -> int:
        """Bytes taken so far."""
        return self._length

    def hexdigest(self) -> str:
        """SHA-256 of the file, once it was flushed."""
        return self._sha256.hexdigest()

    def mark(self) -> int:
        """Ask for the digest of the file up to here; return this place."""
        self._marks.append(self._length)
        return self._length

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        """Take bytes; they reach the disk when a buffer is full, or with ``flush``."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            count = min(len(view) - done, self._size - self._filled)
            self._fill(view[done : done + count])
            done += count
            if self._filled == self._size:
                self._send()
        return done

    def _fill(self, part: memoryview) -> None:
        place = self._buffers[0][self._filled : self._filled + len(part)]
        if part.readonly:  # headers: torch takes only memory that may be written
            memoryview(place.numpy())[:] = part  # type: ignore[arg-type]
        else:
            place.copy_(torch.frombuffer(part, dtype=torch.uint8))
        self._filled += len(part)
        self._length += len(part)

    def _send(self) -> None:
        """Hand the filled buffer over, when the one before it has arrived."""
        self._wait()
        view = memoryview(self._buffers[0].numpy())  # type: ignore[arg-type]
        fresh = view[self._filled - (self._length - self._digested) : self._filled]
        whole = -(-self._filled // PAGE) * PAGE if self._direct else self._filled
        self._pending = (
            self._pool.submit(self._digest, fresh, self._digested, self._marks),
            self._pool.submit(self._write_out, view[:whole]),
        )
        self._filled, self._digested, self._marks = 0, self._length, []
        self._buffers.reverse()

    def _digest(self, data: memoryview, start: int, marks: list[int]) -> None:
        for mark in marks:
            self._sha256.update(data[: mark - start])
            data, start = data[mark - start :], mark
            self.digests[mark] = self._sha256.hexdigest()
        self._sha256.update(data)

    def _write_out(self, view: memoryview) -> None:
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            error.filename = self.path  # which a write to a descriptor does not say
            raise

    def _wait(self) -> None:
        pending, self._pending = self._pending, ()
        for future in pending:
            future.result()

    def flush(self) -> None:
        """Write what is left. Nothing can be written after that."""
        if self.closed:
            return
        if self._filled:
            self._send()
        self._wait()
        self._digest(memoryview(b""), self._length, self._marks)
        self._marks = []
        if self._direct:
            os.ftruncate(self._handle, self._length)

    def close(self) -> None:
        """Close the file, whole or not."""
        if not self.closed:
            try:
                super().close()
            finally:
                self._pool.shutdown()
                self._buffers.clear()  # whoever still asks for digests needs none
                self._close_handle()

    def _close_handle(self) -> None:
        os.close(self._handle)


def allocate_buffers(nbytes: int) -> list[torch.Tensor]:
    """The two buffers of an ``OutputStream``."""
    return [allocate_aligned(nbytes) for _ in range(2)]


def create_stream(
    path: Path, mode: IoMode, buffer_bytes: int, state: StreamState | None = None
) -> OutputStream:
    """Open a file for one sequential stream, bypassing the page cache if ``mode`` and system allow.

    It goes out ``buffer_bytes`` at a time, a multiple of a page, from two buffers. The file is a
    new one, in place of what was there, or continues the file that ``state`` describes. No link is
    followed.
    """
    stream = _open_stream(path, mode, buffer_bytes, state)
    stream.path = str(path)
    return stream


def _open_stream(
    path: Path, mode: IoMode, buffer_bytes: int, state: StreamState | None
) -> OutputStream:
    buffers = allocate_buffers(buffer_bytes)  # before anything is open
    flags = os.O_WRONLY | NO_FOLLOW
    if state is None:
        path.unlink(missing_ok=True)
        flags |= os.O_CREAT | os.O_EXCL
    handle = open_direct(path, flags) if mode != "buffered" else -1
    if handle >= 0:
        stream = OutputStream(handle, buffers, direct=True, state=state)
        if state is not None:
            with path.open("rb") as there:
                there.seek(state.nbytes // PAGE * PAGE)
                stream.restore_tail(there.read())
        return stream
    if state is None:  # some systems make the file and then cannot open it so
        path.unlink(missing_ok=True)
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return OutputStream(os.open(path, flags, 0o666), buffers, direct=False, state=state)
