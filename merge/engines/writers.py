"""The weight files of a run: opened with their first tensor, or where an earlier run ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO, cast

from ..formats import WRITERS, ContainerWriter
from ..output.folder import StagedFolder
from ..output.journal import Place, Reached, WrittenFile
from ..output.resume import ResumePoint, VerifiedPrefix
from ..plan.placement import Plan
from ..settings import IoMode
from ..storage.direct_io import PAGE, OutputStream, StreamState

# What goes to the disk at a time, over all files that are open at once.
_WRITE_BYTES = 8 << 20
_LEAST_WRITE = 1 << 20

Progress = Callable[[int], object]


class OutputFiles:
    """Each is closed after its last tensor. ``past`` is what an earlier run has written of them."""

    def __init__(
        self, plan: Plan, staged: StagedFolder, io: IoMode, progress: Progress, past: ResumePoint
    ) -> None:
        self._plan = plan
        self._staged = staged
        self._io = io
        self._progress = progress
        self._writers: dict[str, ContainerWriter] = {}
        self._streams: dict[str, OutputStream] = {}
        self.written: dict[str, WrittenFile] = {}
        at_once = max((len(item.pieces) for item in plan.placed), default=1)
        share = _WRITE_BYTES // at_once // PAGE * PAGE  # direct writes are whole pages
        self._buffer_bytes = max(_LEAST_WRITE, share)
        self._told: dict[str, int] = {}
        for file, prefix in past.files.items():
            self._take_up(file, prefix)

    def _take_up(self, file: str, begun: VerifiedPrefix) -> None:
        """Go on with a file of an earlier run, or leave it as it is when it is whole."""
        infos = self._plan.files[file]
        if len(begun.finished) == len(infos):
            digest = begun.sha256.hexdigest()
            self._staged.finish(file, digest)
            self.written[file] = WrittenFile(begun.nbytes, digest)
        else:
            self._opened(file, begun)
        self._told[file] = len(begun.finished)
        self._progress(sum(info.nbytes for info in infos[: len(begun.finished)]))

    def write(self, file: str, data: memoryview) -> None:
        """Append to the tensor whose turn it is in ``file``."""
        writer = self._writers.get(file) or self._opened(file)
        writer.write(data)
        if writer.is_complete:
            writer.close()
            self._staged.finish(file)
            stream = self._streams.pop(file)
            self.written[file] = WrittenFile(stream.tell(), stream.hexdigest())
            del self._writers[file]
        self._progress(len(data))

    def _opened(self, file: str, begun: VerifiedPrefix | None = None) -> ContainerWriter:
        place = StreamState(begun.nbytes, begun.sha256) if begun else None
        stream = self._staged.create(file, self._io, self._buffer_bytes, place)
        suffix = file[file.rindex(".") :]
        gate = _ReplayFilter(stream, is_open=begun is None)
        cast(BinaryIO, gate).write(self._plan.headers.get(file, b""))
        writer = WRITERS[suffix](cast(BinaryIO, gate), self._plan.files[file])
        if begun:
            writer.skip(begun.finished)
            gate.is_open = True
        self._writers[file], self._streams[file] = writer, stream
        return writer

    def reached(self, files: Iterable[str]) -> dict[str, Reached | Place]:
        """How far files are that a tensor has just ended in."""
        return {file: self._place(file) for file in files}

    def _place(self, file: str) -> Reached | Place:
        before, self._told[file] = self._told.get(file, 0), 0
        if (whole := self.written.get(file)) is not None:
            left = len(self._plan.files[file]) - before
            return Place(whole.nbytes, whole.sha256, (0,) * left)
        finished = self._writers[file].finished
        self._told[file] = len(finished)
        return Reached(self._streams[file], self._streams[file].mark(), finished[before:])


class _ReplayFilter:
    """Lets bytes through to a stream when it is open; before, they are in the stream already."""

    def __init__(self, stream: OutputStream, is_open: bool) -> None:
        self._stream = stream
        self.is_open = is_open

    @property
    def closed(self) -> bool:
        """Whether the stream takes no more."""
        return self._stream.closed

    def write(self, data: memoryview) -> int:
        """Write or pass over bytes; return how many."""
        return self._stream.write(data) if self.is_open else len(data)
