"""The weight files of a run: opened with their first tensor, or where an earlier run ended.

Each file is written by one thread; different files by different ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO, cast

from ..formats import WRITERS, ContainerWriter
from ..output.journal import FileProgress, PendingProgress, WrittenFile
from ..output.resume import ResumePoint, VerifiedPrefix
from ..output.staged_folder import StagedFolder
from ..plan.placement import Plan
from ..settings import IoMode
from ..sizes import OnBytes
from ..storage.direct_io import PAGE
from ..storage.output_stream import OutputStream, StreamState

# What goes to the disk at a time, over all files that are open at once.
_WRITE_BYTES = 8 << 20
_LEAST_WRITE = 1 << 20


def count_write_bytes(at_once: int) -> int:
    """Size of a buffer of a file, of which each has two, when so many are open at once."""
    share = _WRITE_BYTES // at_once // PAGE * PAGE  # direct writes are whole pages
    return max(_LEAST_WRITE, share)


class OutputFiles:
    """The open files, of which there are at most ``at_once``; each is closed after its last tensor.

    ``resume_point`` is what an interrupted run has written of ``names``.
    """

    def __init__(
        self,
        plan: Plan,
        staged: StagedFolder,
        io: IoMode,
        on_bytes: OnBytes,
        resume_point: ResumePoint,
        names: Iterable[str],
        at_once: int,
    ) -> None:
        self._plan = plan
        self._staged = staged
        self._io = io
        self._on_bytes = on_bytes
        self._writers: dict[str, ContainerWriter] = {}
        self._streams: dict[str, OutputStream] = {}
        self.written: dict[str, WrittenFile] = {}
        self._buffer_bytes = count_write_bytes(at_once)
        self._begun = {
            name: resume_point.files[name] for name in names if name in resume_point.files
        }
        self._reported = {name: len(prefix.tensor_crcs) for name, prefix in self._begun.items()}
        for file, prefix in self._begun.items():
            self._take_over(file, prefix)

    def _take_over(self, file: str, prefix: VerifiedPrefix) -> None:
        """Make a file of an earlier run one of this run, and leave it as it is when it is whole."""
        infos = self._plan.files[file]
        count = len(prefix.tensor_crcs)
        if count == len(infos):
            digest = prefix.sha256.hexdigest()
            self._staged.finish(file, digest)
            self.written[file] = WrittenFile(prefix.nbytes, digest)
        else:
            self._staged.take_over(file)
        self._on_bytes(sum(info.nbytes for info in infos[:count]))

    def write(self, file: str, data: memoryview) -> None:
        """Append to the tensor whose turn it is in ``file``."""
        writer = self._writers.get(file) or self._open(file)
        writer.write(data)
        if writer.is_complete:
            writer.close()
            self._staged.finish(file)
            stream = self._streams.pop(file)
            self.written[file] = WrittenFile(stream.tell(), stream.hexdigest())
            del self._writers[file]
        self._on_bytes(len(data))

    def _open(self, file: str) -> ContainerWriter:
        prefix = self._begun.get(file)
        place = StreamState(prefix.nbytes, prefix.sha256) if prefix else None
        stream = self._staged.create(file, self._io, self._buffer_bytes, place)
        suffix = file[file.rindex(".") :]
        replay = _ReplayFilter(stream, is_open=prefix is None)
        cast(BinaryIO, replay).write(self._plan.headers.get(file, b""))
        writer = WRITERS[suffix](cast(BinaryIO, replay), self._plan.files[file])
        if prefix:
            writer.skip(prefix.tensor_crcs)
            replay.is_open = True
        self._writers[file], self._streams[file] = writer, stream
        return writer

    def get_progress(self, files: Iterable[str]) -> dict[str, PendingProgress | FileProgress]:
        """How far files are that a tensor has just ended in."""
        return {file: self._measure_progress(file) for file in files}

    def _measure_progress(self, file: str) -> PendingProgress | FileProgress:
        before, self._reported[file] = self._reported.get(file, 0), 0
        if (whole := self.written.get(file)) is not None:
            left = len(self._plan.files[file]) - before
            return FileProgress(whole.nbytes, whole.sha256, (0,) * left)
        finished = self._writers[file].tensor_crcs
        self._reported[file] = len(finished)
        return PendingProgress(self._streams[file], self._streams[file].mark(), finished[before:])


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
