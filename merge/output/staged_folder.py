"""The output folder, whose files appear whole, together, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

from ..errors import OutputError
from ..interruption import raise_if_interrupted
from ..messages import tr
from ..settings import IoMode
from ..storage.lock import FolderLock
from ..storage.offload import create_folder, remove_empty
from .journal import Journal, get_partial_path
from .preflight import sort_for_commit

if TYPE_CHECKING:
    from ..storage.output_stream import OutputStream, StreamState

# No room, beyond the user's quota, or larger than this file system's files may be.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RESUME = tr("the same command with --resume continues from there (--overwrite starts over)")


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and lock it, for the one run that writes there.

    Folders that were created for it are removed again when they stay empty. Raises ``OutputError``
    while another process holds the lock.
    """
    with ExitStack() as stack:
        stack.callback(remove_empty, create_folder(folder))
        stack.enter_context(FolderLock(folder))
        yield


class StagedFolder:
    """An output folder, locked by ``lock_folder``; its files appear whole, together, or not at all.

    Files are written as ``.NAME.partial`` beside their final name. Leaving the ``with`` block
    without an error makes them durable and moves them into place, those last by which readers
    find the others (``preflight.sort_for_commit``).

    Leaving it with an error removes them. With a ``journal`` they stay when the run can be
    resumed: after an interruption, or an error of the system rather than of the inputs. The error
    then says so.

    ``obsolete`` are files of an earlier run. They are removed before the first new one gets its
    name, so files of two results never stand side by side.
    """

    def __init__(self, folder: Path, obsolete: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.journal: Journal | None = None
        self._obsolete = tuple(obsolete)
        self._files: dict[str, BinaryIO | None] = {}
        self._digests: dict[str, str] = {}
        self._is_complete = False

    @property
    def journal_folder(self) -> Path:
        """Where the journal is."""
        return self.folder

    def __enter__(self) -> StagedFolder:
        return self

    def create(
        self,
        name: str,
        io: IoMode = "buffered",
        buffer_bytes: int = 1 << 20,
        state: StreamState | None = None,
    ) -> OutputStream:
        """Open a large file for one sequential stream; see ``output_stream.create_stream``."""
        from ..storage.output_stream import create_stream

        self._files[name] = None  # known before it is there, so that a failure here removes it
        stream = create_stream(get_partial_path(self.folder, name), io, buffer_bytes, state)
        self._files[name] = cast(BinaryIO, stream)
        return stream

    def take_over(self, name: str) -> None:
        """Count a file that an earlier run has begun among those of this one."""
        self._files[name] = None

    def finish(self, name: str, digest: str | None = None) -> None:
        """Make a file durable and close it; it gets its name with all others.

        ``digest`` is SHA-256 of a file that an earlier run has finished.
        """
        stream = self._files.setdefault(name, None)
        if stream is not None and not stream.closed:
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        if digest is not None:
            self._digests[name] = digest
        elif (hexdigest := getattr(stream, "hexdigest", None)) is not None:
            self._digests[name] = hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self._digests[name] = sha256(data).hexdigest()
        partial = get_partial_path(self.folder, name)
        partial.unlink(missing_ok=True)
        stream = self._files[name] = partial.open("xb")
        stream.write(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._clean_up(error)
            return
        try:
            self._commit()
        except BaseException as failure:
            self._clean_up(failure)
            raise

    def _commit(self) -> None:
        """Move everything into place. From the journal's last line on this can be done again."""
        for name in self._files:
            self.finish(name)
        raise_if_interrupted()
        if self.journal is not None:
            self.journal.commit(self._digests)
            _sync_folder(self.folder)
        without_name = [
            name
            for name, stream in self._files.items()
            if stream is not None or get_partial_path(self.folder, name).exists()
        ]
        self._withdraw_earlier(without_name)
        for name in sort_for_commit(without_name):
            get_partial_path(self.folder, name).replace(self.folder / name)
        _sync_folder(self.folder)
        self._is_complete = True
        if self.journal is not None:
            self.journal.remove()
        raise_if_interrupted()

    def _withdraw_earlier(self, without_name: list[str]) -> None:
        """Remove the earlier result, whose place is about to be taken, by what readers open first.

        Files that this run has named already, before it was interrupted, stay.
        """
        mine = self._files.keys() - without_name
        names = {*without_name, *(path.name for path in self._obsolete)} - mine
        there = [name for name in names if os.path.lexists(self.folder / name)]
        for name in sort_for_commit(sorted(there))[::-1]:
            (self.folder / name).unlink()
        if there:
            _sync_folder(self.folder)

    def _clean_up(self, reason: BaseException) -> None:
        """Keep or remove what was written. Raises ``OutputError`` in place of a system's error."""
        if self._is_complete:
            reason.args = (tr("the result is complete"),)
            return
        may_resume = isinstance(reason, (KeyboardInterrupt, MemoryError, OSError))
        for stream in self._files.values():
            if stream is not None:
                with contextlib.suppress(OSError):  # what a full disk did not take is buffered
                    stream.close()
        kept = self.journal is not None and self._keep(self.journal, may_resume)
        if not kept:
            self._discard()
        if isinstance(reason, KeyboardInterrupt) and kept:
            reason.args = (tr("what was written is kept; {resume}", resume=_RESUME),)
        if isinstance(reason, OSError) and (kept or reason.errno in _FULL):
            raise _system_error(reason, self.folder, kept) from reason

    def _keep(self, journal: Journal, may_resume: bool) -> bool:
        """Write the journal's last lines; return whether there is anything to resume from."""
        with contextlib.suppress(OSError):
            journal.flush()
        with contextlib.suppress(OSError):
            journal.close()
        return may_resume and journal.is_useful

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # permission may be what was lost
            for name in self._files:
                get_partial_path(self.folder, name).unlink(missing_ok=True)
            if self.journal is not None:
                self.journal.remove()


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files beside a complete result, each at once in the place of an earlier one.

    The folder is locked by ``lock_folder``.
    """
    partials = {name: get_partial_path(folder, name) for name in files}
    try:
        for name, partial in partials.items():
            partial.unlink(missing_ok=True)
            with partial.open("xb") as stream:
                stream.write(files[name])
                stream.flush()
                os.fsync(stream.fileno())
        for name, partial in partials.items():
            partial.replace(folder / name)
        _sync_folder(folder)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _system_error(reason: OSError, folder: Path, kept: bool) -> OutputError:
    if reason.errno in _FULL:
        other = tr("free some space or choose another --output_dir; what was written is removed")
        return OutputError(
            tr("the disk is full: the result could not be written"),
            file=folder,
            found=reason.strerror,
            remedy=tr("free some space; what was written is kept, and {resume}", resume=_RESUME)
            if kept
            else other,
        )
    return OutputError(
        tr("reading or writing failed"),
        file=reason.filename or folder,
        found=reason.strerror or reason,
        remedy=tr("fix that; what was written is kept, and {resume}", resume=_RESUME),
    )


def _sync_folder(folder: Path) -> None:
    """Make renames durable; Windows neither needs nor allows it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
