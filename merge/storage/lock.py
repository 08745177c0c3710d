"""One writer for one folder: a lock that the system releases when a process dies."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path

from ..errors import OutputError
from ..messages import tr
from .open_flags import NO_FOLLOW

LOCK_NAME = ".merge_lock"
# Somebody who only asks holds the lock for a moment.
_ATTEMPTS = 5
_PAUSE = 0.05
# What file systems without locks answer; there nothing prevents two runs.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class FolderLock:
    """Held in a ``with`` block by the one process that writes to ``folder``.

    The lock is a file with the process's id, and the name of the run where other processes take
    part in it (``name_run``). It is removed at the end; one that a killed process left behind does
    not count. Raises ``OutputError`` when another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LOCK_NAME
        self._handle = -1

    def __enter__(self) -> FolderLock:
        if self._path.is_symlink():
            raise OutputError(
                tr("the lock of the folder is a link, which no run creates"),
                file=self._path,
                expected=tr("a file, or nothing"),
                found=tr("a link to {readlink}", readlink=self._path.readlink()),
                remedy=tr("remove the link"),
            )
        for _ in range(_ATTEMPTS):
            self._folder.mkdir(parents=True, exist_ok=True)  # who had made it may have ended
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
            if _try_lock(handle) and self._is_still_there(handle):
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                self._handle = handle
                return self
            os.close(handle)
            time.sleep(_PAUSE)
        raise _locked_error(self._folder, self._path)

    def _is_still_there(self, handle: int) -> bool:
        """The run that held it may have removed it between opening and locking it here."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(handle), self._path.stat())
        return False

    def __exit__(self, *_: object) -> None:
        if sys.platform == "win32":  # which removes no open file
            os.close(self._handle)
        with contextlib.suppress(OSError):  # permission may be what was lost
            self._path.unlink()
        if sys.platform != "win32":  # locked until it is gone, so that nobody locks it in between
            os.close(self._handle)


def name_run(folder: Path, run: str) -> None:
    """Let a run that holds the lock of ``folder`` be known by name, on other machines too.

    The process's id stays where it is at every moment. Raises ``OSError``.
    """
    with (folder / LOCK_NAME).open("a", encoding="utf-8") as lock:
        lock.write(f"\n{run}")


def read_run(folder: Path) -> str:
    """The name of the run that goes on in ``folder``, empty for none. Raises ``OSError``."""
    try:
        return (folder / LOCK_NAME).read_text(encoding="utf-8").partition("\n")[2]
    except FileNotFoundError:
        return ""


def end_run(folder: Path) -> None:
    """Take the name of the run out of the lock that this process holds, as far as that is allowed.

    Cutting it off needs no room on a full disk.
    """
    with contextlib.suppress(OSError):
        os.truncate(folder / LOCK_NAME, len(str(os.getpid())))


def require_unlocked(folder: Path) -> None:
    """Raise ``OutputError`` when a process is writing to ``folder``, which may be missing."""
    path = folder / LOCK_NAME
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return
    try:
        if not _try_lock(handle):
            raise _locked_error(folder, path)
    finally:
        os.close(handle)


def is_abandoned(folder: Path) -> bool:
    """Whether the process that held the lock of ``folder`` died with it."""
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        is_held = os.fstat(handle).st_size == 0  # by somebody who is about to write its number
        if not is_held:
            _lock(handle)
    except OSError:
        return False
    finally:
        os.close(handle)
    return not is_held


def _try_lock(handle: int) -> bool:
    """Lock the file without waiting, where that is possible at all."""
    try:
        _lock(handle)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def _lock(handle: int) -> None:
    """Lock the file; closing it gives the lock back. Raises ``OSError`` when somebody has it."""
    if sys.platform == "win32":
        import msvcrt

        # One byte far behind the number, which others could not read otherwise.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked_error(folder: Path, path: Path) -> OutputError:
    try:
        process = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:  # removed just now
        process = ""
    return OutputError(
        tr("another run is writing to the output folder"),
        file=folder,
        found=tr("process {process}", process=process)
        if process
        else tr("a process that has just started or ended"),
        remedy=tr("wait until it has ended, or choose another --output_dir"),
    )
