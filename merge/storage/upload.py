"""Files that are uploaded as they are written, and seen by nobody before they are completed."""

from __future__ import annotations

from typing import Any

from ..messages import tr
from .output_stream import OutputStream, allocate_buffers
from .remote_path import RemotePath
from .urls import told_as_error

# S3 takes 10,000 parts of a file, none below 5 MiB but the last.
_LEAST_PART = 8 << 20
_MOST_PARTS = 9_000


class Upload:
    """One file on its way, in parts. Only ``commit`` makes it visible, whole.

    ``nbytes`` is about how large it will be. A file of that name must not be there by then.
    """

    def __init__(self, path: RemotePath, nbytes: int = 0) -> None:
        self._url = path.place.get_url(str(path.inside))
        part = max(_LEAST_PART, -(-nbytes // _MOST_PARTS))
        with told_as_error(self._url, tr("beginning an upload")):
            self._handle: Any = path.place.file_system.open(
                self._url, "xb", autocommit=False, block_size=part
            )

    def write(self, data: memoryview) -> None:
        """Append bytes; a part is sent when it is full."""
        with told_as_error(self._url, tr("uploading a part")):
            self._handle.write(bytes(data))

    def finish(self) -> None:
        """Send the last part."""
        with told_as_error(self._url, tr("uploading the last part")):
            self._handle.close()

    def commit(self) -> None:
        """Make the file visible. Raises ``MergeError`` where somebody else's is there."""
        with told_as_error(self._url, tr("completing the upload")):
            self._handle.commit()

    def discard(self) -> None:
        """Abort it; nothing stays of what was sent."""
        with told_as_error(self._url, tr("aborting the upload")):
            self._handle.discard()
        self._handle.closed = True  # so that its end sends nothing more


class UploadStream(OutputStream):
    """An ``OutputStream``, with its digests, into an ``Upload``."""

    def __init__(self, upload: Upload, buffer_bytes: int) -> None:
        super().__init__(-1, allocate_buffers(buffer_bytes), direct=False)
        self.upload = upload

    def _write_out(self, view: memoryview) -> None:
        self.upload.write(view)

    def _close_handle(self) -> None:
        """Nothing: what becomes of the upload is decided with all others."""
