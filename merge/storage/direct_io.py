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
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..settings import IoMode
from .open_flags import NO_LINKS

if TYPE_CHECKING:
    from hashlib import _Hash as Sha256

PAGE = 4096
# What one read carries: large enough for the disk.
# One page more than a span of rows, because tensors begin anywhere in a page.
READ_BYTES = (4 << 20) + PAGE
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
        skipped = offset % PAGE
        wanted = min(READ_BYTES, skipped + len(buffer))
        bounce = _bounce.buffer
        try:
            view = memoryview(bounce.numpy())[: -(-wanted // PAGE) * PAGE]  # type: ignore[arg-type]
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
    page = bytearray(PAGE)
    step = max(PAGE, size // _PROBES)
    try:
        return all(
            os.preadv(handle, [page], offset, os.RWF_NOWAIT) > 0 for offset in range(0, size, step)
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, *_UNABLE):
            return False
        raise


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
    the bytes are on their way. ``begun`` is what to go on from, in its own file.
    """

    def __init__(
        self, handle: int, buffer_bytes: int, direct: bool, begun: StreamState | None = None
    ) -> None:
        self._handle = handle
        self._size = buffer_bytes
        self._direct = direct
        self._buffers = [aligned_buffer(buffer_bytes) for _ in range(2)]
        self._filled = 0
        self._length = 0
        self._sha256 = begun.sha256.copy() if begun else sha256()
        self.path: str | None = None
        self._pool = ThreadPoolExecutor(2)
        self._pending: tuple[Future[None], ...] = ()
        self._digested = 0
        self._marks: list[int] = []
        self.digests: dict[int, str] = {}
        if begun is not None:
            self._go_on(begun)

    def _go_on(self, begun: StreamState) -> None:
        """Cut the file to what is to stay; a last, partial page is to be written again."""
        os.ftruncate(self._handle, begun.nbytes)
        self._length = begun.nbytes
        self._digested = begun.nbytes
        os.lseek(self._handle, begun.nbytes, os.SEEK_SET)

    def put_back(self, tail: bytes) -> None:
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
                os.close(self._handle)


def create(
    path: Path, mode: IoMode, buffer_bytes: int, begun: StreamState | None = None
) -> OutputStream:
    """Open a file for one sequential stream, past the page cache if ``mode`` and system allow.

    It goes out ``buffer_bytes`` at a time, a multiple of a page, from two buffers. The file is a
    new one, in place of what was there, or goes on from what was ``begun``. No link is followed.
    """
    stream = _open_stream(path, mode, buffer_bytes, begun)
    stream.path = str(path)
    return stream


def _open_stream(
    path: Path, mode: IoMode, buffer_bytes: int, begun: StreamState | None
) -> OutputStream:
    flags = os.O_WRONLY | NO_LINKS
    if begun is None:
        path.unlink(missing_ok=True)
        flags |= os.O_CREAT | os.O_EXCL
    handle = open_direct(path, flags) if mode != "buffered" else -1
    if handle >= 0:
        stream = OutputStream(handle, buffer_bytes, direct=True, begun=begun)
        if begun is not None:
            with path.open("rb") as there:
                there.seek(begun.nbytes // PAGE * PAGE)
                stream.put_back(there.read())
        return stream
    if begun is None:  # some systems make the file and then cannot open it so
        path.unlink(missing_ok=True)
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return OutputStream(os.open(path, flags, 0o666), buffer_bytes, direct=False, begun=begun)
