"""SHA-256 of whole files, which is what ``sha256sum`` and the Hub show."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from ..interruption import raise_if_interrupted
from ..sizes import OnBytes
from ..storage.remote_path import RemotePath

# Large, because a thread waits for its turn after each while others run Python's code.
_PIECE_BYTES = 16 << 20


def get_file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces, and only once while it stays as it is."""
    return _start_digest(path).result()


def start_digests(paths: Iterable[Path]) -> None:
    """Start to hash files in the background, for later calls of ``get_file_digest``.

    Missing files are skipped.
    """
    for path in paths:
        if path.is_file():
            _start_digest(path)


def _start_digest(path: Path) -> Future[str]:
    """The digest of a file as it is now; one that failed or was interrupted starts again."""
    state = _read_state(path)
    future = _submit_digest(path, state)
    if future.done() and (future.cancelled() or future.exception() is not None):
        _submit_digest.cache_clear()
        future = _submit_digest(path, state)
    return future


def _read_state(path: Path) -> tuple[object, ...]:
    """What changes with a file. Adapters of one shape have one size, and ``cp -p`` and ``mv`` keep
    the time of modification, so inode and the time of the inode's change count too.
    """
    if isinstance(path, RemotePath):
        return path.stat()
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=64)
def _submit_digest(path: Path, _state: tuple[object, ...]) -> Future[str]:
    return _get_pool().submit(hash_file, path)


@lru_cache(maxsize=1)
def _get_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def hash_file(path: Path, on_bytes: OnBytes | None = None) -> str:
    """Read a file for its SHA-256; ``on_bytes`` is called with the size of each piece."""
    digest, buffer = sha256(), bytearray(min(_PIECE_BYTES, path.stat().st_size + 1))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            raise_if_interrupted()
            digest.update(memoryview(buffer)[:count])
            if on_bytes is not None:
                on_bytes(count)
    return digest.hexdigest()
