"""Files that several machines write: each attempt at a file has a name of its own.

A machine that was given up may still be writing when another one begins the same file anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..settings import IoMode
from .journal import get_partial_path

if TYPE_CHECKING:
    from ..storage.output_stream import OutputStream, StreamState


def get_attempt_path(folder: Path, name: str, attempt: str) -> Path:
    """Where an attempt writes a file.

    >>> get_attempt_path(Path("out"), "model.bin", "3f2a").as_posix()
    'out/.model.bin.partial.3f2a'
    """
    partial = get_partial_path(folder, name)
    return partial.with_name(f"{partial.name}.{attempt}")


def get_part_name(file: str, part: int) -> str:
    """The name of a file with a part of the tensors of ``file``: a container of one kind for all.

    >>> get_part_name("model.gguf", 2)
    'model.gguf.part-0002.safetensors'
    """
    return f"{file}.part-{part:04}.safetensors"


def find_attempts(folder: Path, files: Iterable[str]) -> list[Path]:
    """Every attempt at one of these files, or at a part of one, that is there."""
    starts = tuple(f".{file}.{kind}" for file in files for kind in ("partial.", "part-"))
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.name.startswith(starts)]


def remove_attempts(folder: Path, files: Iterable[str]) -> None:
    """Remove what ``find_attempts`` finds, as far as that is allowed."""
    for path in find_attempts(folder, files):
        with contextlib.suppress(OSError):
            path.unlink()


def measure_attempts(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """The size of the largest attempt at each of these files at which there is any."""
    files = {get_attempt_path(folder, name, "").name: name for name in names}
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            start, dot, _ = entry.name.rpartition(".")
            name = files.get(start + dot)
            if name is not None:
                with contextlib.suppress(OSError):  # its attempt has just failed
                    sizes[name] = max(sizes.get(name, 0), entry.stat().st_size)
    return sizes


class AttemptFolder:
    """The output folder as one attempt at some of its files sees it.

    Leaving the ``with`` block with an error removes what was written. Otherwise every file is
    durable and keeps its attempt's name.
    """

    def __init__(self, folder: Path, attempt: str) -> None:
        self._folder = folder
        self._attempt = attempt
        self._streams: dict[str, OutputStream] = {}

    def get_path(self, name: str) -> Path:
        """Where a file is written."""
        return get_attempt_path(self._folder, name, self._attempt)

    def create(
        self,
        name: str,
        io: IoMode = "buffered",
        buffer_bytes: int = 1 << 20,
        state: StreamState | None = None,
    ) -> OutputStream:
        """Open a file for one sequential stream; see ``output_stream.create_stream``."""
        from ..storage.output_stream import create_stream

        stream = create_stream(self.get_path(name), io, buffer_bytes, state)
        self._streams[name] = stream
        return stream

    def finish(self, name: str, digest: str | None = None) -> None:
        """Make a file durable and close it."""
        stream = self._streams[name]
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()

    def __enter__(self) -> AttemptFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        for name, stream in self._streams.items():
            with contextlib.suppress(OSError):
                stream.close()
            with contextlib.suppress(OSError):
                self.get_path(name).unlink(missing_ok=True)
