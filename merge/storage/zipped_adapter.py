"""A zipped adapter folder, as people hand them around: unpacked before it is read."""

from __future__ import annotations

import re
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from ..errors import FormatError
from ..messages import tr
from ..untrusted.safe_zip import Records, is_zip, iter_chunks, open_zip
from .offload import Offload, require_space

ADAPTER_CONFIG_NAME = "adapter_config.json"
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")


def find_adapter_folder(path: Path) -> str | None:
    """The folder inside a zip archive that holds ``adapter_config.json``; None if none does.

    torch's own files are zip archives too, without that file. Raises ``FormatError`` for a damaged
    archive, and for one with names or links that lead out of it.
    """
    if not is_zip(path):
        return None
    with open_zip(path) as (_, records):
        names = [PurePosixPath(name) for name in records]
        folders = sorted({str(name.parent) for name in names if name.name == ADAPTER_CONFIG_NAME})
        if folders:
            _require_inside(path, records)
    if len(folders) > 1:
        raise FormatError(
            tr("the archive holds several adapters"),
            file=path,
            expected=tr("one {adapter_config_name}", adapter_config_name=ADAPTER_CONFIG_NAME),
            found=", ".join(folders[:5]),
            remedy=tr("unpack it and give the folders in the order of merging"),
        )
    return folders[0] if folders else None


def _require_inside(path: Path, records: Records) -> None:
    """No name may lead out of the folder into which somebody unpacks the archive."""
    for name, info in records.items():
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if is_link or _ABSOLUTE.match(name) or {"..", "."} & set(re.split(r"[/\\]", name)):
            raise FormatError(
                tr("the archive holds a link or a name that leads out of it"),
                file=path,
                expected=tr("plain files"),
                found=tr(
                    "{text} {name}", text=tr("a link") if is_link else tr("a file"), name=name
                ),
                remedy=tr(
                    "do not unpack it with other tools either; get the adapter from elsewhere"
                ),
            )


def unpack(path: Path, inside: str, offload: Offload) -> Path:
    """Unpack the files of one folder of an archive, and return the new folder.

    Raises ``FormatError`` for a damaged archive, ``OutputError`` where the disk has no room. Only
    plain files directly in that folder are taken, so no name can lead elsewhere.
    """
    folder = Path(tempfile.mkdtemp(dir=offload.ensure_folder())) / path.stem
    folder.mkdir()
    offload.copies[folder] = str(path)
    with open_zip(path) as (archive, records):
        _require_inside(path, records)
        wanted = [info for name, info in records.items() if _is_directly_in(name, inside, info)]
        require_space(folder, sum(info.file_size for info in wanted))
        for info in wanted:
            with (folder / PurePosixPath(info.filename).name).open("xb") as sink:
                for piece in iter_chunks(path, archive, info):
                    sink.write(piece)
    return folder


def _is_directly_in(name: str, inside: str, info: zipfile.ZipInfo) -> bool:
    return str(PurePosixPath(name).parent) == inside and not info.is_dir()
