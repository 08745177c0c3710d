"""Parts of a file behind a URL, fetched when they are read and, row block by row block, before."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..messages import tr
from .remote_path import PARTS_AHEAD, RemotePath
from .urls import NoRangesError, told_as_error

# A tensor that was not read during so many blocks of its file is read no more.
_IDLE_BLOCKS = 32


@dataclass
class _Reading:
    """What is known of the reading of one tensor: where the blocks begin that were asked for, the
    parts that are fetched ahead, and which block of the file was its last.
    """

    asked: set[int] = field(default_factory=set)
    ahead: dict[tuple[int, int], Future[bytes]] = field(default_factory=dict)
    last: int = 0

    def drop(self) -> None:
        """Let go of what was fetched ahead."""
        for future in self.ahead.values():
            future.cancel()
        self.ahead.clear()


class RemoteFile:
    """A file of which any thread may read any part.

    Who reads a tensor in equal blocks, one after the other, finds the next ones fetched. Nothing is
    fetched ahead beyond the end that the reader names, so no byte comes that nobody wants; nor what
    another thread has asked for already, so none comes twice.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._key = str(path.inside)
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._readings: dict[int, _Reading] = {}  # by the end that the reader names
        self._blocks = 0

    def read_into(self, buffer: memoryview, offset: int, until: int | None = None) -> None:
        """Fill ``buffer`` from byte ``offset`` on; the caller goes on in such steps to ``until``.

        Raises ``NetworkError`` or another ``MergeError`` that says what the server answered.
        """
        ready = None
        if until is not None:
            with self._lock:
                ready = self._note_block(offset, len(buffer), until)
        buffer[:] = ready.result() if ready is not None else self._fetch(offset, len(buffer))

    def _note_block(self, offset: int, count: int, until: int) -> Future[bytes] | None:
        """Fetch what follows a block ahead; return the block itself if it was."""
        self._blocks += 1
        reading = self._readings.setdefault(until, _Reading())
        reading.last = self._blocks
        ready = reading.ahead.pop((offset, count), None)
        if ready is None and offset in reading.asked:
            reading.asked.clear()  # read once more
        reading.asked.add(offset)
        if ready is not None or offset - count in reading.asked:
            self._drop_idle()
            self._fetch_ahead(reading, offset + count, count, until)
        return ready

    def _drop_idle(self) -> None:
        for end, reading in list(self._readings.items()):
            if reading.last < self._blocks - _IDLE_BLOCKS:
                reading.drop()
                del self._readings[end]

    def _fetch_ahead(self, reading: _Reading, offset: int, count: int, until: int) -> None:
        room = PARTS_AHEAD - sum(len(one.ahead) for one in self._readings.values())
        wanted = (start for start in range(offset, until, count) if start not in reading.asked)
        for start in islice(wanted, max(0, room)):
            reading.asked.add(start)
            part = (start, min(count, until - start))
            reading.ahead[part] = self._path.place.pool.submit(self._fetch, *part)

    def _fetch(self, offset: int, count: int) -> bytes:
        asked = tr(
            "reading bytes {offset:,} to {offset_2:,}", offset=offset, offset_2=offset + count
        )
        with told_as_error(str(self._path), asked):
            handle = self._take_handle()
            handle.seek(offset)
            content: bytes = handle.read(count)
            self._handles.append(handle)
            if len(content) > count:
                raise NoRangesError(tr("{n_content:,} bytes", n_content=len(content)))
            if len(content) < count:
                raise EOFError(tr("{n_content:,} bytes came", n_content=len(content)))
        self._path.place.traffic.add(count)
        return content

    def _take_handle(self) -> Any:
        try:
            return self._handles.pop()
        except IndexError:
            return self._path.place.open_handle(self._key)

    def drop_ahead(self) -> None:
        """Let go of what was fetched ahead: the reader goes on elsewhere."""
        with self._lock:
            for reading in self._readings.values():
                reading.drop()
            self._readings.clear()

    def close(self) -> None:
        """Let go of what was fetched ahead and of the connections."""
        self.drop_ahead()
        while self._handles:
            self._handles.pop().close()


class RemoteStream(io.RawIOBase):
    """A file behind a URL from front to back, or from where ``seek`` says."""

    def __init__(self, path: RemotePath) -> None:
        self._file = RemoteFile(path)
        self._size = path.stat().st_size
        self._place = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(tr("a place before the beginning"))
        if start + offset != self._place:
            self._file.drop_ahead()
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` as far as the file goes."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._place))
        if count:
            self._file.read_into(view[:count], self._place, self._size)
            self._place += count
        return count

    def close(self) -> None:
        """Close the connections too."""
        if not self.closed:
            self._file.close()
        super().close()
