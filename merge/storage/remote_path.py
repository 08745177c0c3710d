"""Files behind URLs, listed once, with the part of ``pathlib.Path`` that inputs are used by.

A ``RemoteFolder`` is what a place held when a job began. Small documents are fetched whole when
they are first opened, and kept; of weights only the parts are fetched that are read. Both are
values that other processes can be handed: what is connected or kept stays behind.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages import tr
from .urls import ChangedError, hide_credentials, is_http, open_file_system, told_as_error

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from fsspec import AbstractFileSystem

    _Path = Path
else:
    _Path = object

# Everything else is a document.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf")
# How many parts are on their way at once, beside those that are waited for.
PARTS_AHEAD = 4


class RemoteStat(NamedTuple):
    """What a server says of a file; ``version`` changes with its content, where it says one.

    A time that it does not say counts as later than any.
    """

    st_size: int
    version: str | None = None
    st_mtime_ns: int | float = math.inf
    # By these, which no local file has, ``samefile`` tells it apart from every local one.
    st_ino: int = -1
    st_dev: int = -1


def read_stat(info: Mapping[str, Any]) -> RemoteStat:
    """What fsspec says of a file, by the names that different protocols have for it."""
    keys = ("ETag", "etag", "VersionId", "generation", "blob_id", "Last-Modified")
    version = next(filter(None, (info.get(key) for key in keys)), None)
    times = (info.get(key) for key in ("LastModified", "Last-Modified", "mtime", "updated"))
    changed = _to_nanoseconds(next(filter(None, times), None))
    return RemoteStat(info["size"], str(version) if version else None, changed)


def _to_nanoseconds(moment: Any) -> int | float:
    """A time in any of the protocols' spellings; one that is not known is later than all."""
    try:
        if isinstance(moment, str):
            is_iso = moment[:4].isdigit()
            moment = datetime.fromisoformat(moment) if is_iso else parsedate_to_datetime(moment)
        return int(moment.timestamp() * 1e9)
    except (AttributeError, TypeError, ValueError):
        return math.inf


class Traffic:
    """Bytes of files that were fetched, over all threads of a run."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count ``count`` bytes more."""
        with self._lock:
            self.nbytes += count

    def __reduce__(self) -> tuple[type[Traffic], tuple[()]]:
        """Another process counts for itself."""
        return Traffic, ()


@dataclass(eq=False)
class RemoteFolder:
    """A place and the files in it, by their names relative to it.

    ``query`` follows the name in every URL: that of a web server may carry a signature.
    """

    url: str = field(repr=False)
    files: Mapping[str, RemoteStat]
    traffic: Traffic
    query: str = field(default="", repr=False)

    def __getstate__(self) -> dict[str, Any]:
        names = ("url", "files", "traffic", "query")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def shown(self) -> str:
        """The URL as it may be printed."""
        return hide_credentials(self.url)

    @cached_property
    def file_system(self) -> AbstractFileSystem:
        """The connection, made when it is first asked for."""
        return open_file_system(self.url)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Threads that fetch ahead."""
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(PARTS_AHEAD)

    @cached_property
    def folders(self) -> frozenset[str]:
        """The folders that its files lie in, itself as ``.``."""
        names = {str(above) for name in self.files for above in PurePosixPath(name).parents}
        return frozenset({".", *names})

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """What was fetched whole, by name."""
        return {}

    def get_url(self, name: str) -> str:
        """The URL of a file in it, with all that its server needs."""
        return f"{self.url}/{name}{self.query}"

    def path(self, name: str) -> RemotePath:
        """A file or folder in it."""
        return RemotePath(self, name)

    def open_handle(self, name: str) -> Any:
        """Open a file to fetch parts of it. The version must be the one that was listed.

        fsspec's buffers are left out: each read is one request.
        """
        stat = self.files[name]
        options: dict[str, Any] = {"cache_type": "none"}
        if is_http(self.url):
            options |= {"size": stat.st_size, "block_size": 1 << 20}
            if (version := stat.version or "").startswith('"'):  # only a strong one may be asked
                options["headers"] = {"If-Match": version}
        handle = self.file_system.open(self.get_url(name), "rb", **options)
        details = None if is_http(self.url) else getattr(handle, "details", None)
        found = read_stat(details or {"size": stat.st_size})
        if found.version not in (None, stat.version):
            handle.close()
            raise ChangedError(
                tr(
                    "version {version} instead of {version_2}",
                    version=found.version,
                    version_2=stat.version,
                )
            )
        return handle

    def read(self, name: str) -> bytes:
        """A document, fetched once."""
        if name not in self.documents:
            url = self.get_url(name)
            with told_as_error(url, tr("reading the file")):
                content = self.file_system.cat_file(url)
                if len(content) != self.files[name].st_size:
                    raise ChangedError(tr("{n_content:,} bytes came", n_content=len(content)))
            self.traffic.add(len(content))
            self.documents[name] = content
        return self.documents[name]


class RemotePath(_Path):
    """A file or folder in a ``RemoteFolder``, which answers as a ``Path`` does, from the listing.

    It has no place in this machine's file system, so ``os.fspath`` refuses it.
    """

    def __init__(self, place: RemoteFolder, inside: PurePosixPath | str = ".") -> None:
        self.place = place
        self.inside = PurePosixPath(inside)

    def __str__(self) -> str:
        return self.place.shown + ("" if self._key == "." else f"/{self._key}")

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __reduce__(self) -> tuple[type[RemotePath], tuple[RemoteFolder, str]]:
        return RemotePath, (self.place, self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: object) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: object) -> RemotePath:
        return RemotePath(self.place, self.inside / str(name))

    @property
    def _key(self) -> str:
        return str(self.inside)

    @property
    def _own(self) -> PurePosixPath:
        return PurePosixPath(str(self))

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self._own.name

    @property
    def stem(self) -> str:
        """``name`` without ``suffix``."""
        return self._own.stem

    @property
    def suffix(self) -> str:
        """The ending of ``name``."""
        return self._own.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the URL."""
        return self._own.parts

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in; the place itself is its own."""
        return RemotePath(self.place, self.inside.parent)

    def with_name(self, name: str) -> RemotePath:
        """Another file in the same folder."""
        return self.parent / name

    def resolve(self, strict: bool = False) -> RemotePath:
        """Itself: there are no links."""
        return self

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def samefile(self, other: object) -> bool:
        """Whether ``other`` has the same URL."""
        return self == other

    def is_dir(self) -> bool:
        """Whether files lie in it."""
        return self._key in self.place.folders

    def is_file(self) -> bool:
        """Whether it was listed as a file."""
        return self._key in self.place.files

    def exists(self) -> bool:
        """Whether it was listed."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]
        """The files and folders directly in it."""
        names = [*self.place.files, *self.place.folders - {"."}]
        inside = (PurePosixPath(name) for name in names)
        return (RemotePath(self.place, path) for path in inside if path.parent == self.inside)

    def glob(self, pattern: str) -> Iterator[RemotePath]:  # type: ignore[override]
        """What is directly in it by a pattern, or with ``**/`` in front all that is below it."""
        if pattern.startswith("**/"):
            below = (RemotePath(self.place, name) for name in self.place.files)
            return (path for path in below if fnmatch(path.name, pattern[3:]))
        return (path for path in self.iterdir() if fnmatch(path.name, pattern))

    def stat(self) -> RemoteStat:  # type: ignore[override]
        """Size and version, as listed. Raises ``FileNotFoundError`` for what was not listed."""
        if self.is_dir():
            return RemoteStat(0)
        if self._key not in self.place.files:
            raise FileNotFoundError(2, tr("there is no such file"), str(self))
        return self.place.files[self._key]

    def open(self, mode: str = "rb", buffering: int = -1) -> Any:  # type: ignore[override]
        """Open for reading, as bytes: a document whole, weights by parts."""
        assert mode == "rb", "inputs are read"
        if not self.is_file():
            raise FileNotFoundError(2, tr("there is no such file"), str(self))
        if self.suffix not in WEIGHT_SUFFIXES:
            return io.BytesIO(self.place.read(self._key))
        from .remote_file import RemoteStream

        raw = RemoteStream(self)
        return raw if buffering == 0 else io.BufferedReader(raw)

    def read_bytes(self) -> bytes:
        """The whole content."""
        with self.open() as stream:
            return stream.read()  # type: ignore[no-any-return]
