"""A folder that a job reads, as a value: listed once, each small document in it read once."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..untrusted.strict_json import LARGEST_JSON, parse_json, read_small


class Folder:
    """What is directly in a folder when a job begins; a path to a file stands for that file alone.

    Listing and documents are read when they are first asked for, and then kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._documents: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @cached_property
    def entries(self) -> Mapping[str, Path]:
        """Every file, folder and link directly in it, by name, in the order of names."""
        if not self.path.is_dir():
            return {self.path.name: self.path} if self.path.exists() else {}
        return {path.name: path for path in sorted(self.path.iterdir())}

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """The files among ``entries``, links to files included."""
        return {name: path for name, path in self.entries.items() if path.is_file()}

    def matching(self, *patterns: str) -> list[Path]:
        """Entries whose names match one of the shell patterns, by pattern and then by name."""
        found = (path for p in patterns for name, path in self.entries.items() if fnmatch(name, p))
        return list(dict.fromkeys(found))

    def read(self, name: str, most: int = LARGEST_JSON) -> bytes:
        """A small file's content. Raises ``FormatError`` when it has more than ``most`` bytes."""
        if name not in self._documents:
            self._documents[name] = read_small(self.entries.get(name, self.path / name), most)
        return self._documents[name]

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file, made anew so that the caller may change it.

        Raises ``FormatError`` when it is anything else.
        """
        return parse_json(self.read(name), self.path / name)

    def digest(self, name: str) -> str:
        """SHA-256 of a small file."""
        return sha256(self.read(name)).hexdigest()
