"""Folders that are written to: outputs whose files appear whole, and room for unpacked inputs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

from .errors import OutputError
from .lock import FolderLock
from .settings import IoMode
from .sizes import size_text

if TYPE_CHECKING:
    from .direct_io import OutputStream

# No room, beyond the user's quota, or larger than this file system's files may be.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StagedFolder:
    """An output folder whose files appear whole, together, or not at all.

    Files are written as ``.NAME.partial`` beside their final name. Leaving the ``with`` block
    without an error makes them durable and moves them into place, in the order in which they were
    opened; leaving it with one removes them, and the folder too if it was made here.

    ``obsolete`` are files of an earlier run that are removed once the new ones are in place. Raises
    ``OutputError`` while another process writes to the folder.
    """

    def __init__(self, folder: Path, obsolete: Iterable[Path] = ()) -> None:
        self.folder = folder
        self._obsolete = tuple(obsolete)
        self._files: dict[str, BinaryIO] = {}
        self._held = ExitStack()

    def __enter__(self) -> StagedFolder:
        with ExitStack() as stack:
            stack.callback(_remove_empty, _make(self.folder))
            stack.enter_context(FolderLock(self.folder))
            self._held = stack.pop_all()
        return self

    def create(
        self, name: str, io: IoMode = "buffered", buffer_bytes: int = 1 << 20
    ) -> OutputStream:
        """Open a large file for one sequential stream of bytes; see ``direct_io.create``."""
        from .direct_io import create

        stream = create(self._partial(name), io, buffer_bytes)
        self._opened(name, cast(BinaryIO, stream))
        return stream

    def finish(self, name: str) -> None:
        """Make a file durable and close it; it gets its name with all others."""
        handle = self._files[name]
        if not handle.closed:
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()

    def _opened(self, name: str, handle: BinaryIO) -> BinaryIO:
        self._files[name] = handle
        return handle

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self._opened(name, self._partial(name).open("wb")).write(data)

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.partial"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._held:
            if error is not None:
                self._discard(error)
                return
            try:
                self._commit()
            except BaseException as failure:
                self._discard(failure)
                raise

    def _commit(self) -> None:
        for name in self._files:
            self.finish(name)
        for name in self._files:
            self._partial(name).replace(self.folder / name)
        for path in self._obsolete:
            if path.name not in self._files:
                path.unlink(missing_ok=True)
        _sync_folder(self.folder)

    def _discard(self, reason: BaseException) -> None:
        """Remove what was written. Raises ``OutputError`` when a full disk is the reason."""
        for name, handle in self._files.items():
            with contextlib.suppress(OSError):  # what a full disk did not take is still buffered
                handle.close()
            self._partial(name).unlink(missing_ok=True)
        if isinstance(reason, OSError) and reason.errno in _FULL:
            raise OutputError(
                "the disk took no more while the result was written",
                file=self.folder,
                found=reason.strerror,
                remedy="make room or choose another --output_dir; what was written is removed",
            ) from None


def _sync_folder(folder: Path) -> None:
    """Make renames durable; Windows neither needs nor allows it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(folder: Path, needed: int) -> None:
    """Raise ``OutputError`` unless the disk that will hold ``folder`` has ``needed`` bytes free."""
    free = shutil.disk_usage(_present(folder)).free
    if free < needed:
        raise OutputError(
            "not enough room on the disk for the result",
            file=folder,
            expected=f"{size_text(needed)} free",
            found=f"{size_text(free)} free",
            remedy="make room or choose another --output_dir",
        )


def _present(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


class Offload:
    """Where inputs go that cannot be read in place; empty again when the ``with`` block ends.

    ``io`` says how inputs are read at all; see ``direct_io.py``.

    A private folder is made on first use, in ``folder`` when one is given (made if absent, and
    removed again if so), else beside ``fallback``, whose disk was chosen to have room.
    """

    def __init__(self, folder: Path | None, fallback: Path, io: IoMode = "auto") -> None:
        self.io = io
        self._given = folder
        self._fallback = fallback
        self._made: list[Path] = []

    def __enter__(self) -> Offload:
        return self

    def folder(self) -> Path:
        """The private folder."""
        if not self._made:
            parent = self._given or _present(self._fallback)
            self._made = _make(parent)
            self._made.append(Path(tempfile.mkdtemp(prefix=".offload-", dir=parent)))
        return self._made[-1]

    @property
    def is_given(self) -> bool:
        """Whether the user named a folder."""
        return self._given is not None

    def __exit__(self, *_: object) -> None:
        if self._made:
            shutil.rmtree(self._made.pop(), ignore_errors=True)
            _remove_empty(self._made)


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; return those that were not there, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    for path in missing:
        path.mkdir()
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # something is in it: the folder stays
        for path in reversed(folders):
            path.rmdir()
