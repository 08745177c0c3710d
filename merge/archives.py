"""A zipped adapter folder, as people hand them around: unpacked before it is read."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from .errors import FormatError
from .staging import Offload

_CONFIG_NAME = "adapter_config.json"


def zipped_folder(path: Path) -> str | None:
    """The folder inside a zip archive that holds ``adapter_config.json``; None if none does.

    torch's own files are zip archives too, without that file.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    folders = sorted({str(name.parent) for name in names if name.name == _CONFIG_NAME})
    if len(folders) > 1:
        raise FormatError(
            "the archive holds several adapters",
            file=path,
            expected=f"one {_CONFIG_NAME}",
            found=", ".join(folders[:5]),
            remedy="unpack it and give the folders in the order of merging",
        )
    return folders[0] if folders else None


def unpack(path: Path, inside: str, offload: Offload) -> Path:
    """Unpack the files of one folder of an archive, and return the new folder.

    Raises ``FormatError`` for a damaged archive. Only plain files directly in that folder are
    taken, so no name can lead elsewhere.
    """
    folder = Path(tempfile.mkdtemp(dir=offload.folder())) / path.stem
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename)
                if str(name.parent) == inside and not info.is_dir():
                    with archive.open(info) as source, (folder / name.name).open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise FormatError(
            "the archive cannot be unpacked",
            file=path,
            found=error,
            remedy="fetch it again; an encrypted one must be unpacked by hand",
        ) from None
    return folder
