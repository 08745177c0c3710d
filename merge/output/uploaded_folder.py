"""An output folder behind a URL, whose files become visible together, when all are uploaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import MergeError, OutputError
from ..interruption import raise_if_interrupted
from ..messages import tr
from ..settings import IoMode
from ..storage.output_stream import OutputStream, StreamState
from ..storage.remote_path import RemotePath
from ..storage.upload import Upload, UploadStream
from ..storage.urls import told_as_error
from .preflight import sort_for_commit
from .staged_folder import StagedFolder


class UploadedFolder(StagedFolder):
    """As ``StagedFolder``, for a bucket: parts are uploaded while the files are written.

    Leaving the ``with`` block without an error removes the earlier result and completes the
    uploads, those last by which readers find the others. Any error or interruption aborts them all;
    nothing can be resumed. ``largest`` is the size of the largest file.
    """

    def __init__(self, place: RemotePath, obsolete: Iterable[Path], largest: int) -> None:
        super().__init__(place, obsolete)
        self._place = place
        self._largest = largest
        self._uploads: dict[str, Upload] = {}
        self._private = TemporaryDirectory()

    @property
    def journal_folder(self) -> Path:
        """A private folder of this machine: nobody resumes from it."""
        return Path(self._private.name)

    def create(
        self,
        name: str,
        io: IoMode = "buffered",
        buffer_bytes: int = 1 << 20,
        state: StreamState | None = None,
    ) -> OutputStream:
        """Begin the upload of a large file."""
        upload = self._uploads[name] = Upload(self._place / name, self._largest)
        stream = UploadStream(upload, buffer_bytes)
        self._files[name] = stream  # type: ignore[assignment]
        return stream

    def finish(self, name: str, digest: str | None = None) -> None:
        """Send what is left of a file."""
        stream = self._files[name]
        if isinstance(stream, UploadStream) and not stream.closed:
            stream.flush()
            stream.close()
            self._uploads[name].finish()
            self._digests[name] = stream.hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Upload a small file."""
        upload = self._uploads[name] = Upload(self._place / name)
        self._files[name] = None
        self._digests[name] = sha256(data).hexdigest()
        upload.write(memoryview(data))
        upload.finish()

    def _commit(self) -> None:
        for name in self._files:
            self.finish(name)
        raise_if_interrupted()
        self._remove(sort_for_commit(path.name for path in self._obsolete)[::-1])
        done: list[str] = []
        try:
            for name in sort_for_commit(self._uploads):
                self._uploads[name].commit()
                done.append(name)
        except MergeError as error:
            with contextlib.suppress(MergeError):
                self._remove(done[::-1])
            for name in done:
                del self._uploads[name]
            raise OutputError(
                tr("the uploads could not be completed, and what was visible of them was removed"),
                file=error.facts.get("file"),
                found=error.facts.get("found"),
                remedy=tr("see that nobody else writes to this place, then run the command again"),
            ) from error
        self._is_complete = True
        self._forget_journal()
        raise_if_interrupted()

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            url = self._place.place.get_url(name)
            with told_as_error(url, tr("removing a file")):
                self._place.place.file_system.rm_file(url)

    def _clean_up(self, reason: BaseException) -> None:
        """Abort every upload; an upload that cannot be reached any more is left to the bucket."""
        if self._is_complete:
            reason.args = (tr("the result is complete"),)
            return
        for stream in self._files.values():
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        for upload in self._uploads.values():
            with contextlib.suppress(MergeError):
                upload.discard()
        self._forget_journal()

    def _forget_journal(self) -> None:
        if self.journal is not None:
            with contextlib.suppress(OSError):
                self.journal.remove()
        self._private.cleanup()
