"""Archives written forwards, byte for byte against Python's zipfile writing to a pipe."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128

from merge.formats.torch.zip_stream import ZipStream

ALIGNMENT = 64
CHUNK = memoryview(bytes(range(256)) * 4096)


class Pipe(io.RawIOBase):
    """Takes bytes and keeps their digest."""

    def __init__(self) -> None:
        self.digest = xxh3_128()
        self.length = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self.length

    def seek(self, offset: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation("seek")

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self.digest.update(data)
        self.length += len(data)
        return len(data)


def fill(sink: io.IOBase | ZipStream, nbytes: int) -> None:
    while nbytes:
        piece = CHUNK[: min(nbytes, len(CHUNK))]
        sink.write(piece)  # type: ignore[union-attr]
        nbytes -= len(piece)


def by_zipfile(sizes: list[int]) -> tuple[int, str]:
    pipe = Pipe()
    with zipfile.ZipFile(cast(BinaryIO, pipe), "w", zipfile.ZIP_STORED) as archive:
        for number, size in enumerate(sizes):
            info = zipfile.ZipInfo(f"archive/{number}", (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            large = size * 1.05 > zipfile.ZIP64_LIMIT
            header = 30 + len(info.filename) + (20 if large else 0) + 4
            padding = -(pipe.length + header) % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(info, "w", force_zip64=large) as record:
                fill(record, size)  # type: ignore[arg-type]
    return pipe.length, pipe.digest.hexdigest()


def by_stream(sizes: list[int]) -> tuple[int, str]:
    pipe = Pipe()
    archive = ZipStream(cast(BinaryIO, pipe))
    for number, size in enumerate(sizes):
        archive.begin(f"archive/{number}", size, ALIGNMENT)
        fill(archive, size)
        archive.end()
    archive.finish()
    return pipe.length, pipe.digest.hexdigest()


@given(st.lists(st.integers(0, 5000), max_size=40))
def test_bytes_are_those_of_zipfile(sizes: list[int]) -> None:
    assert by_stream(sizes) == by_zipfile(sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [[(2 << 30) + 5, 3, 2047 << 20, 7], [1] * 70_000],
    ids=["4 GiB and records of 2", "more records than 16 bits count"],
)
def test_bytes_of_what_needs_wider_fields_are_those_of_zipfile(sizes: list[int]) -> None:
    assert by_stream(sizes) == by_zipfile(sizes)
