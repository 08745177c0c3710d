"""Room for inputs that are unpacked or fetched, and whether a disk has room at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from tempfile import gettempdir

from ..errors import MergeError, OutputError
from ..messages import rename_paths, tr
from ..settings import IoMode
from ..sizes import size_text
from .lock import FolderLock, is_abandoned
from .remote_path import RemotePath, Traffic

# What private folders of unpacked inputs are called, before a few random letters.
_OFFLOAD = ".offload-"


def require_space(folder: Path, needed: int, reclaimable: int = 0, of: str | None = None) -> None:
    """Raise ``OutputError`` unless the disk that will hold ``folder`` has ``needed`` bytes free.

    ``reclaimable`` bytes are taken there by files that will go; ``of`` is what needs them, if not
    the result.
    """
    free = shutil.disk_usage(find_existing(folder)).free + reclaimable
    if free < needed:
        raise OutputError(
            tr("not enough disk space for {of}", of=of or tr("the result")),
            file=folder,
            expected=tr("{needed} free", needed=size_text(needed)),
            found=tr("{free} free", free=size_text(free)),
            remedy=tr("free some space or choose another --output_dir"),
        )


def find_existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


class Offload:
    """Where inputs go that cannot be read in place; empty again when the ``with`` block ends.

    ``io`` says how inputs are read at all; see ``direct_io.py``. ``traffic`` counts what comes over
    the network, ``notes`` say what was copied whole for want of another way. ``copies`` are folders
    in it, with the names of what they are copies of: a ``MergeError`` that leaves the block says
    these names.

    A private folder is made on first use, in ``folder`` when one is given (made if absent, and
    removed again if so), else beside ``fallback``, whose disk was chosen to have room, or with the
    system's temporary files where that is no local folder. Folders
    that runs left there when they were killed are removed then.
    """

    def __init__(self, folder: Path | None, fallback: Path, io: IoMode = "auto") -> None:
        self.io = io
        self.traffic = Traffic()
        self.notes: list[str] = []
        self.copies: dict[Path, str] = {}
        self._given = folder
        is_remote = isinstance(fallback, RemotePath)
        self._parent = folder or find_existing(Path(gettempdir()) if is_remote else fallback)
        self._private: Path | None = None
        self._held = ExitStack()

    def __enter__(self) -> Offload:
        return self

    def ensure_folder(self) -> Path:
        """The private folder."""
        if self._private is None:
            parent = self._parent
            self._held.callback(remove_empty, create_folder(parent))
            for place in (parent, parent.parent):  # the output folder was perhaps not yet there
                _remove_abandoned(place)
            self._private = Path(tempfile.mkdtemp(prefix=_OFFLOAD, dir=parent))
            self._held.callback(shutil.rmtree, self._private, ignore_errors=True)
            self._held.enter_context(FolderLock(self._private))
        return self._private

    def rename(self, *texts: str) -> tuple[str, ...]:
        """Texts that say the names of what was copied in place of the copies' paths."""
        return tuple(rename_paths(text, self.copies) for text in texts)

    def get_name(self, path: Path) -> str:
        """What the user calls a path, which may be in a copy."""
        return rename_paths(str(path), self.copies)

    def describe_network(self) -> tuple[str, ...]:
        """Lines about what came over the network, none where nothing did."""
        read = self.traffic.nbytes
        return (tr("network    {read} read", read=size_text(read)), *self.notes) if read else ()

    @property
    def is_given(self) -> bool:
        """Whether the user named a folder."""
        return self._given is not None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, MergeError):
            error.rename_paths(self.copies)
        self._held.close()


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed runs unpacked there."""
    for folder in parent.glob(f"{_OFFLOAD}*"):
        if is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def is_offloaded(path: Path) -> bool:
    """Whether a file is one that was unpacked or fetched for a single run."""
    return any(part.startswith(_OFFLOAD) for part in path.parts)


def create_folder(folder: Path) -> list[Path]:
    """Make a folder with its parents; return those that were not there, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    for path in missing:
        path.mkdir(exist_ok=True)  # another run may need it at the same moment
    return missing


def remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # something is in it: the folder stays
        for path in reversed(folders):
            path.rmdir()
