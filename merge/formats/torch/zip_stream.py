"""A zip archive of uncompressed records, written forwards only.

Sizes and CRC-32 follow each record's data, as the format's data descriptors, so that no byte is
written twice. The bytes are those that Python's ``zipfile`` writes to a pipe; what is different is
the CRC, made by ISA-L at three times zlib's speed: at the rate of a disk that is noticed.
"""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO

from isal.isal_zlib import crc32

_HAS_DESCRIPTOR = 0x08
_OWNER_PERMISSIONS = 0o600 << 16  # the permissions that zipfile gives to records it makes
_UNIX = 3  # on every platform, so that the bytes are the same
_BIG = 0xFFFFFFFF
_LARGEST = zipfile.ZIP64_LIMIT
_DESCRIPTOR = b"PK\x07\x08"
_DESCRIPTOR_32, _DESCRIPTOR_64 = struct.Struct("<4sLLL"), struct.Struct("<4sLQQ")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_VERSION, _VERSION_64 = 20, 45


class ZipStream:
    """Records one after the other: ``begin``, any number of ``write``, ``end``; then ``finish``.

    A record is given its size when it begins, which decides whether its descriptor has 64 bits.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self._records: list[zipfile.ZipInfo] = []

    def begin(self, name: str, nbytes: int, alignment: int) -> None:
        """Write a record's header, padded so that its data begins on a multiple of ``alignment``.

        The padding is a field ``FB`` of extra data, as torch's own writer has it.
        """
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.create_system = _UNIX
        info.external_attr = _OWNER_PERMISSIONS
        info.flag_bits = _HAS_DESCRIPTOR
        info.header_offset = self._position
        large = _is_large(nbytes)
        header = 30 + len(name.encode()) + (20 if large else 0) + 4
        padding = -(self._position + header) % alignment
        info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        info.file_size, info.CRC = 0, 0
        self._put(info.FileHeader(large))
        self._records.append(info)

    def write(self, data: bytes | memoryview) -> None:
        """Append to the current record."""
        info = self._records[-1]
        info.CRC = crc32(data, info.CRC)
        info.file_size += len(data)
        self._put(data)

    def skip(self, nbytes: int, crc: int) -> None:
        """Take a record's data as written, by an earlier run."""
        info = self._records[-1]
        info.CRC, info.file_size = crc, nbytes
        self._position += nbytes

    @property
    def crcs(self) -> tuple[int, ...]:
        """CRC-32 of each record, the current one included."""
        return tuple(info.CRC for info in self._records)

    def end(self) -> None:
        """Write what follows a record's data."""
        info = self._records[-1]
        info.compress_size = info.file_size
        descriptor = _DESCRIPTOR_64 if _is_large(info.file_size) else _DESCRIPTOR_32
        self._put(descriptor.pack(_DESCRIPTOR, info.CRC, info.compress_size, info.file_size))

    def finish(self) -> None:
        """Write the directory of all records and the end of the archive."""
        start = self._position
        for info in self._records:
            self._put(_build_directory_entry(info))
        self._put(_build_end(len(self._records), start, self._position))

    def _put(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._position += len(data)


def _is_large(nbytes: int) -> bool:
    """zipfile's own rule for 64-bit sizes: 5 % are left for compression that makes it longer."""
    return nbytes * 1.05 > _LARGEST


def _build_directory_entry(info: zipfile.ZipInfo) -> bytes:
    name = info.filename.encode()
    size, offset = info.file_size, info.header_offset
    wide = [size, size] if size > _LARGEST else []
    wide += [offset] if offset > _LARGEST else []
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version = max(_VERSION_64 if wide else 0, info.extract_version)
    made = max(_VERSION_64 if wide else 0, info.create_version)
    fields = (made, info.create_system, version, info.reserved, info.flag_bits, info.compress_type)
    sizes = (_BIG, _BIG) if size > _LARGEST else (size, size)
    place = _BIG if offset > _LARGEST else offset
    data = extra + info.extra
    midnight, first_of_1980 = 0, 1 << 5 | 1
    return (
        _ENTRY.pack(
            b"PK\x01\x02",
            *fields,
            midnight,
            first_of_1980,
            info.CRC,
            *sizes,
            len(name),
            len(data),
            0,
            0,
            0,
            info.external_attr,
            place,
        )
        + name
        + data
    )


def _build_end(count: int, start: int, stop: int) -> bytes:
    """The end of the archive; for large ones with the 64-bit end before it."""
    size = stop - start
    end = b""
    if count > zipfile.ZIP_FILECOUNT_LIMIT or start > _LARGEST or size > _LARGEST:
        versions = (_VERSION_64, _VERSION_64)
        end = _END_64.pack(b"PK\x06\x06", 44, *versions, 0, 0, count, count, size, start)
        end += _LOCATOR_64.pack(b"PK\x06\x07", 0, stop, 1)
        count, size, start = min(count, 0xFFFF), min(size, _BIG), min(start, _BIG)
    return end + _END.pack(b"PK\x05\x06", 0, 0, count, count, size, start, 0)
