"""Parts of a file behind a URL, fetched when they are read and, row block by row block, before."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future
from typing import Any

from ..messages import tr
from .remote_path import PARTS_AHEAD, RemotePath
from .urls import NoRangesError, told_as_error


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
        self._ahead: dict[tuple[int, int], Future[bytes]] = {}
        # Where the blocks asked for begin, by the end that their readers named.
        self._asked: dict[int, set[int]] = {}

    def read_into(self, buffer: memoryview, offset: int, until: int | None = None) -> None:
        """Fill ``buffer`` from ``offset`` on; the caller goes on in such steps to ``until``."""
        count = len(buffer)
        with self._lock:
            ready = self._ahead.pop((offset, count), None)
            if until is not None:
                asked = self._asked.setdefault(until, set())
                if ready is None and offset in asked:
                    asked.clear()  # read once more
                asked.add(offset)
                if ready is not None or offset - count in asked:
                    self._fetch_ahead(offset + count, count, until)
        buffer[:] = ready.result() if ready is not None else self._fetch(offset, count)

    def _fetch_ahead(self, offset: int, count: int, until: int) -> None:
        asked = self._asked[until]
        for start in range(offset, until, count):
            if len(self._ahead) >= PARTS_AHEAD:
                return
            if start not in asked:
                asked.add(start)
                part = (start, min(count, until - start))
                self._ahead[part] = self._path.place.pool.submit(self._fetch, *part)

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
            for future in self._ahead.values():
                future.cancel()
            self._ahead.clear()
            self._asked.clear()

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
