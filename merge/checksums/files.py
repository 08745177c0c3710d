"""SHA-256 of whole files, which is what ``sha256sum`` and the Hub show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from ..interruption import raise_if_interrupted

# Large, because a thread waits for its turn after each while others run Python's code.
_PIECE_BYTES = 16 << 20


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces, and only once while it stays as it is."""
    return _begun(path).result()


def begin_digests(paths: Iterable[Path]) -> None:
    """Let digests be made that will be asked for, while the caller goes on.

    What is not there is passed over.
    """
    for path in paths:
        if path.is_file():
            _begun(path)


def _begun(path: Path) -> Future[str]:
    """The digest of a file as it is now; one that failed or was interrupted is made again."""
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    future = _digest(*key)
    if future.done() and (future.cancelled() or future.exception() is not None):
        _digest.cache_clear()
        future = _digest(*key)
    return future


@lru_cache(maxsize=64)
def _digest(path: Path, _size: int, _changed: int) -> Future[str]:
    return _pool().submit(read_digest, path)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def read_digest(path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Read a file for its SHA-256; ``on_bytes`` is called with the size of each piece."""
    digest, buffer = sha256(), bytearray(min(_PIECE_BYTES, path.stat().st_size + 1))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            raise_if_interrupted()
            digest.update(memoryview(buffer)[:count])
            if on_bytes is not None:
                on_bytes(count)
    return digest.hexdigest()
