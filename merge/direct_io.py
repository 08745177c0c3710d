"""Reading and writing past the page cache, where that is possible and pays.

Copying through the page cache costs the kernel more than the disk costs, and a file of many
gigabytes that is read once and written once gains nothing from it. Direct I/O wants offsets,
lengths and memory that are multiples of a page; what is not goes through a buffer that is.

Modes: ``auto`` reads a file from the page cache when that holds it already and goes past it
otherwise, ``direct`` always goes past it, ``buffered`` never. The bytes are the same.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import torch

from .settings import IoMode

_PAGE = 4096
# What one read carries: large enough for the disk.
# One page more than a span of rows, because tensors begin anywhere in a page.
READ_BYTES = (4 << 20) + _PAGE
# Smaller reads gain nothing: the page cache reads ahead for them.
SMALLEST_READ = 256 << 10
# Places at which a file is asked for in the page cache.
_PROBES = 16
# What a file system that cannot do it answers.
_UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)

O_DIRECT = getattr(os, "O_DIRECT", 0)


def aligned_buffer(size: int) -> torch.Tensor:
    """Memory of its own, on page boundaries, as bytes."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


class _Bounce(threading.local):
    """One aligned buffer for each thread that reads."""

    def __init__(self) -> None:
        self.buffer = aligned_buffer(READ_BYTES)


_bounce = _Bounce()


class DirectReader:
    """Reads large ranges of a file past the page cache.

    Where direct I/O is not to be had, every read answers 0 and the caller reads as usual.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        self._lock = threading.Lock()

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the beginning of ``buffer`` from ``offset`` on; return how many bytes."""
        handle = self._open()
        if handle < 0:
            return 0
        skipped = offset % _PAGE
        wanted = min(READ_BYTES, skipped + len(buffer))
        bounce = _bounce.buffer
        try:
            view = memoryview(bounce.numpy())[: -(-wanted // _PAGE) * _PAGE]  # type: ignore[arg-type]
            count = os.preadv(handle, [view], offset - skipped) - skipped
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            self.close(for_good=True)
            return 0
        count = max(0, min(count, len(buffer)))
        if count:
            target = torch.frombuffer(buffer, dtype=torch.uint8)
            target[:count].copy_(bounce[skipped : skipped + count])
        return count

    def _open(self) -> int:
        with self._lock:
            if self._handle is None:
                self._handle = open_direct(self._path, os.O_RDONLY)
            return self._handle

    def close(self, for_good: bool = False) -> None:
        """Close the file; ``for_good`` if direct reads have shown not to work on it."""
        with self._lock:
            if self._handle is not None and self._handle >= 0:
                os.close(self._handle)
            self._handle = -1 if for_good else None


def open_direct(path: Path, flags: int) -> int:
    """Open past the page cache; -1 where that is not possible."""
    if not O_DIRECT:
        return -1
    try:
        return os.open(path, flags | O_DIRECT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _UNABLE:
            return -1
        raise


def is_cached(handle: int, size: int) -> bool:
    """Whether the page cache holds a file: a few pages all over it are asked for without waiting.

    Asking makes the kernel read ahead a little, so not every read can begin by asking.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    page = bytearray(_PAGE)
    step = max(_PAGE, size // _PROBES)
    try:
        return all(
            os.preadv(handle, [page], offset, os.RWF_NOWAIT) > 0 for offset in range(0, size, step)
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, *_UNABLE):
            return False
        raise


class OutputStream(io.RawIOBase):
    """A new file written once, front to back, and SHA-256 of it.

    Two aligned buffers take turns: one is filled while the other is on its way to the disk and
    through the digest. Past the page cache (``direct``) the last, partial page is written whole and
    cut off afterwards.
    """

    def __init__(self, handle: int, buffer_bytes: int, direct: bool) -> None:
        self._handle = handle
        self._size = buffer_bytes
        self._direct = direct
        self._buffers = [aligned_buffer(buffer_bytes) for _ in range(2)]
        self._filled = 0
        self._length = 0
        self._sha256 = sha256()
        self._pool = ThreadPoolExecutor(2)
        self._pending: tuple[Future[None], ...] = ()

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
        whole = -(-self._filled // _PAGE) * _PAGE if self._direct else self._filled
        self._pending = (
            self._pool.submit(self._sha256.update, view[: self._filled]),
            self._pool.submit(self._write_out, view[:whole]),
        )
        self._filled = 0
        self._buffers.reverse()

    def _write_out(self, view: memoryview) -> None:
        while view:
            view = view[os.write(self._handle, view) :]

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
        if self._direct:
            os.ftruncate(self._handle, self._length)

    def close(self) -> None:
        """Close the file, whole or not."""
        if not self.closed:
            try:
                super().close()
            finally:
                self._pool.shutdown()
                os.close(self._handle)


def create(path: Path, mode: IoMode, buffer_bytes: int) -> OutputStream:
    """Create a file for one sequential stream, past the page cache if ``mode`` and system allow.

    It goes out ``buffer_bytes`` at a time, a multiple of a page, from two buffers.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    handle = open_direct(path, flags) if mode != "buffered" else -1
    if handle >= 0:
        return OutputStream(handle, buffer_bytes, direct=True)
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return OutputStream(os.open(path, flags, 0o666), buffer_bytes, direct=False)
