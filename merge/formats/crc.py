"""CRC-32 of a record, checked as its bytes pass, in whatever order threads read them."""

from __future__ import annotations

import threading
from pathlib import Path

from isal import isal_zlib

from ..errors import FormatError
from ..messages import tr


class CrcCheck:
    """Compares what is read of ``nbytes`` with ``expected`` when all of it has passed once.

    The checksums of neighboring pieces are combined, so nothing waits and nothing is read twice.
    What is read only in parts stays unchecked.
    """

    def __init__(self, path: Path, tensor: str, nbytes: int, expected: int) -> None:
        self._path = path
        self._tensor = tensor
        self._nbytes = nbytes
        self._expected = expected
        self._lock = threading.Lock()
        self._end = 0
        self._crc = 0
        self._ahead: dict[int, tuple[int, int]] = {}

    def update(self, offset: int, data: memoryview) -> None:
        """Take note of the bytes from ``offset`` on. Raises ``FormatError`` for a wrong record."""
        if offset < self._end:
            return
        piece = isal_zlib.crc32(data), len(data)
        with self._lock:
            self._ahead[offset] = piece
            while self._end in self._ahead:
                crc, length = self._ahead.pop(self._end)
                self._crc = isal_zlib.crc32_combine(self._crc, crc, length)
                self._end += length
            wrong = self._end == self._nbytes and self._crc != self._expected
        if wrong:
            raise FormatError(
                tr("the data of a tensor has been damaged since the file was written"),
                file=self._path,
                tensor=self._tensor,
                expected=tr("the checksum (CRC-32) {expected:08x}", expected=self._expected),
                found=f"{self._crc:08x}",
                remedy=tr("fetch or copy the file again"),
            )
