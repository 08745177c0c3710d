"""What a failed download or clone leaves in place of a file: nothing, or a Git LFS pointer."""

from __future__ import annotations

from pathlib import Path

from ..errors import FormatError
from ..messages import tr

_LFS_VERSION = b"version https://git-lfs"
HEAD_BYTES = len(_LFS_VERSION)
"""How many bytes of a file to look at."""


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a Git LFS pointer.

    >>> is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1"), is_lfs_pointer(b"GGUF")
    (True, False)
    """
    return head.startswith(_LFS_VERSION)


def refuse_placeholder(path: Path, head: bytes) -> None:
    """Raise ``FormatError`` for a file that begins with ``head`` if it is empty or a pointer."""
    if not head:
        raise FormatError(
            tr("the file is empty"), file=path, remedy=tr("fetch or copy the file again")
        )
    if is_lfs_pointer(head):
        raise FormatError(
            tr("this is a Git LFS pointer, not the file itself"),
            file=path,
            found=tr("{st_size} bytes of text", st_size=path.stat().st_size),
            remedy=tr("run `git lfs pull` in that folder, or download the file itself"),
        )
