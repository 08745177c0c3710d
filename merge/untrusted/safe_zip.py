"""Zip archives from strangers: opened within bounds, and read only where they are consistent.

What ``zipfile`` believes, and is checked here: how long the directory is (it is read whole), how
far records expand, and that names and places in the file belong to one record each.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from lzma import LZMAError
from pathlib import Path

from ..errors import FormatError
from ..messages import compose, tr

# What zipfile raises for damage anywhere, encryption, or an unknown kind of compression.
_UNREADABLE = (
    zipfile.BadZipFile,
    ArithmeticError,
    EOFError,
    LookupError,
    LZMAError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)
# Fifty thousand records; LLaMA 65B has fewer than a thousand.
_DIRECTORY_BYTES = 4 << 20
# Weights compress to two thirds; a file of zeros, as an untrained adapter's, to a thousandth.
_MOST_EXPANSION = 20
_SMALL_ENOUGH = 64 << 20
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 1
_FOLDER = 0x10  # torch reads such a record as whatever its memory held before
# bzip2 and LZMA expand all that they are given: a few thousand bytes may become a hundred MB.
_PIECE = {zipfile.ZIP_STORED: 1 << 20, zipfile.ZIP_DEFLATED: 1 << 20}
_SMALL_PIECE = 4096

Records = dict[str, zipfile.ZipInfo]


class _Bounded(io.BufferedReader):
    """A file of which nobody reads more at once than a directory may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = _DIRECTORY_BYTES + 1 if size is None or size < 0 else size
        if wanted > _DIRECTORY_BYTES + 1:
            raise zipfile.BadZipFile(tr("its directory would have {wanted:,} bytes", wanted=wanted))
        return super().read(wanted)


@contextmanager
def open_zip(path: Path) -> Iterator[tuple[zipfile.ZipFile, Records]]:
    """Open an archive and give its records by name.

    Raises ``FormatError`` when it is no whole archive, when two records have one name or one
    place, and when it would expand to more than twenty times its size.
    """
    with path.open("rb", buffering=0) as raw, _Bounded(raw) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except _UNREADABLE as error:
            raise _cut_off_error(path, error) from None
        with archive:
            yield archive, _check_records(path, archive.infolist())


def is_zip(path: Path) -> bool:
    """Whether a file ends as a zip archive does."""
    with path.open("rb", buffering=0) as raw, _Bounded(raw) as stream:
        return zipfile.is_zipfile(stream)


def iter_chunks(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a record of ``path``, a little at a time, and no more than it announces.

    Raises ``FormatError`` where it is damaged.
    """
    try:
        with archive.open(info) as source:
            while piece := source.read(_PIECE.get(info.compress_type, _SMALL_PIECE)):
                yield piece
    except _UNREADABLE as error:
        raise damaged_record_error(path, info, error) from None


def damaged_record_error(path: Path, info: zipfile.ZipInfo, reason: object) -> FormatError:
    """The error of a record that cannot be read."""
    return FormatError(
        tr("a part of the archive cannot be read"),
        file=path,
        found=compose("{name}: {reason}", name=info.filename, reason=reason),
        remedy=tr("the file is damaged: fetch or copy it again"),
    )


def is_stored(info: zipfile.ZipInfo) -> bool:
    """Whether the bytes of a record lie in the file as they are."""
    return info.compress_type == zipfile.ZIP_STORED


def _check_records(path: Path, infos: list[zipfile.ZipInfo]) -> Records:
    records = {info.filename: info for info in infos}
    if len(records) != len(infos):
        names = Counter(info.filename for info in infos)
        raise _contradiction_error(
            path, tr("{most_common} appears twice", most_common=names.most_common(1)[0][0])
        )
    _require_places(path, infos)
    expanded = sum(info.file_size for info in infos if not is_stored(info))
    size = path.stat().st_size
    if expanded > _SMALL_ENOUGH + _MOST_EXPANSION * size:
        raise FormatError(
            tr("the archive would expand to far more than weights do"),
            file=path,
            expected=tr(
                "at most {most_expansion} times its {size:,} bytes",
                most_expansion=_MOST_EXPANSION,
                size=size,
            ),
            found=tr("{expanded:,} bytes when unpacked", expanded=expanded),
            remedy=tr("do not unpack it with other tools either; get the weights from elsewhere"),
        )
    return records


def _require_places(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Every record has bytes of its own: several on one place are how small files get huge."""
    for info in infos:
        if info.header_offset < 0:
            raise _cut_off_error(path, tr("a record would begin before the file does"))
        if info.flag_bits & _ENCRYPTED:
            raise _contradiction_error(path, tr("{filename} is encrypted", filename=info.filename))
        if is_stored(info) and info.file_size != info.compress_size:
            raise _contradiction_error(path, tr("{filename} has two sizes", filename=info.filename))
        if info.external_attr & _FOLDER and info.file_size:
            raise _contradiction_error(
                path, tr("{filename} is marked as a folder", filename=info.filename)
            )
    ordered = sorted(infos, key=lambda info: info.header_offset)
    for info, following in pairwise(ordered):
        name = len(info.orig_filename.encode("utf-8", "replace"))
        least = info.header_offset + _LOCAL_HEADER_BYTES + min(name, len(info.orig_filename))
        if least + info.compress_size > following.header_offset:
            raise _contradiction_error(
                path,
                tr(
                    "{filename} and {filename_2} overlap",
                    filename=info.filename,
                    filename_2=following.filename,
                ),
            )


def _contradiction_error(path: Path, found: str) -> FormatError:
    return FormatError(
        tr("the archive contradicts itself"),
        file=path,
        expected=tr("records with a name and a place of their own, not encrypted"),
        found=found,
        remedy=tr("the file is damaged or made to mislead: get it from elsewhere"),
    )


def _cut_off_error(path: Path, reason: object) -> FormatError:
    return FormatError(
        tr("the file starts as a zip archive, but its end is missing or damaged"),
        file=path,
        expected=tr("a whole zip archive"),
        found=tr("{st_size:,} bytes ({reason})", st_size=path.stat().st_size, reason=reason),
        remedy=tr("an unfinished download or copy: fetch the file again"),
    )
