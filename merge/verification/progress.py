"""How far a check of a result is: bytes that its threads have read, of all that will be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from ..settings import OnProgress
from ..tensors.lazy import LazyTensor
from .expected_tensor import ExpectedTensor
from .manifest import Manifest, list_files


class Progress:
    """Bytes that several threads have read, reported to one listener."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._report, self._total, self._done = on_progress, total, 0
        self._lock = Lock()
        self._is_over = False

    def add(self, count: int) -> None:
        """Count bytes; a thread that reads on after the check has ended stops here."""
        with self._lock:
            if self._is_over:
                raise CancelledError
            self._done += count
            if self._report is not None and self._total:
                self._report(min(self._done, self._total), self._total)

    @contextmanager
    def stop_on_error(self) -> Iterator[None]:
        """End the threads that read when the block ends early: at Ctrl-C, say."""
        try:
            yield
        except BaseException:
            self._is_over = True
            raise


def count_file_bytes(folder: Path, manifest: Manifest | None) -> int:
    """Bytes of the files that will be hashed."""
    files = [] if manifest is None else list_files(folder, manifest)
    return sum(path.stat().st_size for path in files)


def count_bytes(tensors: Mapping[str, LazyTensor], made: Mapping[str, ExpectedTensor]) -> int:
    """Bytes that will be read: of the result, and of what its rows are made of."""
    total = 0
    for name, tensor in tensors.items():
        total += tensor.nbytes
        expected = made.get(name)
        if expected is None or expected.uncovered is not None:
            continue
        for segment in expected.segments:
            row_bytes = sum(stream.row_bytes for stream in segment.streams)
            total += (segment.last - segment.first) * row_bytes
    return total
