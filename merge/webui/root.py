"""The folder that the page may use: what a browser names is found in it, or refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import UsageError
from ..layouts.config import CONFIG_NAME
from ..messages import tr
from ..storage.zipped_adapter import ADAPTER_CONFIG_NAME

PARAMS_NAME = "params.json"
# How far below the root models are looked for, and in how many folders.
_DEPTH, _MOST_FOLDERS = 4, 2000
# A model has some hundred files; more than this is not one.
_MOST_FILES = 20_000


@dataclass(frozen=True)
class Root:
    """A folder, and whether Hub ids may be named as well."""

    folder: Path
    allow_downloads: bool = False

    def find_input(self, name: str) -> str:
        """Return the absolute path of an input, or the Hub id as it is.

        Raises ``UsageError`` for what is not there, lies elsewhere, or leads elsewhere by a link.
        """
        path = self._find_inside(name)
        if path.exists():
            self._require_links_inside(path)
            return str(path)
        if self.allow_downloads and _may_be_hub_id(name):
            return name
        raise UsageError(
            tr("there is no such file or folder"),
            file=name,
            expected=tr("a path below the root of this page, {root}", root=self.folder),
            remedy=self._describe_hub_rule(),
        )

    def find_output(self, name: str) -> Path:
        """Return the absolute path of a folder to write to, which need not be there.

        Raises ``UsageError`` as ``find_input`` does.
        """
        path = self._find_inside(name)
        if path.exists():
            self._require_links_inside(path)
        return path

    def _find_inside(self, name: str) -> Path:
        """Follow every link and ``..`` of a name, and see where that ends."""
        if not name.strip() or "\0" in name:
            raise UsageError(tr("a field is empty"), remedy=tr("name a folder in it"))
        try:
            path = Path(os.path.realpath(self.folder / name.strip()))
            is_inside = path.is_relative_to(os.path.realpath(self.folder))
            path.exists()
        except (OSError, ValueError, RuntimeError):  # links in a circle, names too long
            is_inside = False
        if "://" in name or not is_inside:
            raise UsageError(
                tr("this page may not use that path"),
                expected=tr("a path below the root of this page, {root}", root=self.folder),
                found=name,
                remedy=tr("start the page with another --root, or put the files there"),
            )
        return path

    def _require_links_inside(self, path: Path) -> None:
        """Refuse links anywhere in a folder that would bring in a file from elsewhere."""
        inside = os.path.realpath(self.folder)
        for number, entry in enumerate(_list_tree(path), 1):
            if number > _MOST_FILES:
                raise UsageError(
                    tr("the folder has too many files for a model"),
                    file=path,
                    expected=tr("at most {count}", count=_MOST_FILES),
                    remedy=tr("name the folder of the model itself"),
                )
            if _is_link(entry) and not Path(os.path.realpath(entry)).is_relative_to(inside):
                raise UsageError(
                    tr("a link leads out of the root of this page"),
                    file=entry.path,
                    expected=tr("a path below the root of this page, {root}", root=self.folder),
                    remedy=tr("put the file itself there"),
                )

    def _describe_hub_rule(self) -> str:
        if self.allow_downloads:
            return tr("check the spelling")
        return tr("check the spelling; for Hub ids start the page with --allow_downloads")

    def list_models(self) -> tuple[list[str], list[str]]:
        """Names of folders and files that look like models, and like adapters, sorted."""
        models, adapters = [], []
        for folder, names in _walk(self.folder):
            shown = folder.relative_to(self.folder).as_posix()
            if ADAPTER_CONFIG_NAME in names:
                adapters.append(shown)
            elif CONFIG_NAME in names or PARAMS_NAME in names:
                models.append(shown)
            for name in sorted(names):
                if name.endswith(".gguf"):
                    models.append((folder / name).relative_to(self.folder).as_posix())
        return models, adapters


def _may_be_hub_id(name: str) -> bool:
    """Whether it is for ``plan.inputs.resolve`` to say: nothing that could be a local path."""
    parts = PurePath(name).parts
    return len(parts) >= 2 and ".." not in parts and name[0].isalnum() and "\\" not in name


def _list_tree(path: Path) -> Iterator[os.DirEntry[str]]:
    """Every entry below a folder; links are not followed."""
    waiting = [str(path)] if path.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False) and not _is_link(entry):
                    waiting.append(entry.path)


def _is_link(entry: os.DirEntry[str]) -> bool:
    # Junctions of Windows are not symbolic links.
    is_junction = getattr(entry, "is_junction", lambda: False)
    return entry.is_symlink() or bool(is_junction())


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders from the root down with the names of their files, without links and hidden ones."""
    for count, (folder, folders, names) in enumerate(os.walk(root), 1):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < _DEPTH else []
        yield Path(folder), names
        if count >= _MOST_FOLDERS:
            return
