"""What lies behind a URL: listed where the protocol lists, else by the names that models have."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, UsageError
from ..interruption import raise_if_interrupted
from ..messages import tr
from .offload import Offload, require_space
from .remote_file import RemoteStream
from .remote_path import RemoteFolder, RemotePath, RemoteStat, Traffic, read_stat
from .urls import (
    SMALL_BYTES,
    MissingError,
    WholeFilesOnlyError,
    hide_credentials,
    is_http,
    open_file_system,
    split_query,
    told_as_error,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# The last part of a URL that names a file rather than a folder.
_FILE_SUFFIXES = (".gguf", ".model", ".json", ".tiktoken", ".zip")
# Folders of folders are not looked into further.
_DEPTH = 2
_AT_ONCE = 8
_PIECE = 4 << 20
# What is asked for where nothing can be listed.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_USUAL_NAMES = (
    *("config.json", "generation_config.json", "params.json", "adapter_config.json"),
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "merge_manifest.json", "adapter_model.safetensors", "adapter_model.bin"),
    *("model.safetensors", "pytorch_model.bin", "consolidated.00.pth", *_INDEXES),
)
_PLAIN_NAME = re.compile(r"[\w][\w.-]{0,200}")
_GGUF_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_MOST_FILES = 1000


def open_place(url: str, offload: Offload | None) -> RemotePath:
    """The folder or file behind a URL, with its listing.

    Raises ``UsageError`` for what is not there or may not be read.
    """
    plain, query = split_query(url)
    place, _, name = plain.rpartition("/")
    is_file = name.lower().endswith(_FILE_SUFFIXES) and not place.endswith(":/")
    place, name = (place, name) if is_file else (plain, "")
    traffic = (offload or Offload(None, Path())).traffic
    with told_as_error(url, tr("listing the files")):
        place, changed = _pin_revision(place)
        found = _list_files(open_file_system(place), place, name, query)
    files = {
        inside: _with_time(read_stat(info), changed)
        for inside, info in sorted(found.items())
        if info.get("size") is not None
    }
    path = RemotePath(RemoteFolder(place, files, traffic, query), name or ".")
    if not files or not path.exists():
        raise UsageError(
            tr("the place holds no files"),
            file=hide_credentials(url),
            expected=tr("a folder, prefix or repository with a model, an adapter or a tokenizer"),
            found=tr("files without a size: {found}", found=", ".join(found))
            if found
            else tr("nothing"),
            remedy=tr("check the spelling"),
        )
    return path


# Where files can be uploaded in parts and completed afterwards.
_UPLOADS = ("s3", "gs")


def open_output_place(url: str) -> RemotePath:
    """A place for a result, with the files that are there already, if any.

    Raises ``OutputError`` for protocols without uploads that stay invisible until they are
    completed, ``UsageError`` for a bucket that is not there or may not be read.
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in _UPLOADS:
        raise OutputError(
            tr("a result cannot be written to {protocol}://", protocol=protocol),
            file=hide_credentials(url),
            expected=tr("a local folder, or ") + ", ".join(f"{name}://" for name in _UPLOADS),
            remedy=tr(
                "write to a local folder, then upload that with `hf upload owner/name FOLDER`"
            )
            if protocol == "hf"
            else tr("write to a local folder, then copy that to where it belongs"),
        )
    place, _ = split_query(url)
    bucket = "/".join(place.split("/")[:3])
    with told_as_error(bucket, tr("looking for the bucket")):
        files = open_file_system(place)
        if not files.exists(bucket):
            raise FileNotFoundError(tr("no such bucket"))
        found = _list_files(files, place, "", "")
    listed = {name: read_stat(info) for name, info in sorted(found.items())}
    return RemotePath(RemoteFolder(place, listed, Traffic()))


def _with_time(stat: RemoteStat, changed: float | None) -> RemoteStat:
    """``stat`` with the time at which everything was last changed, where that is known."""
    return stat if changed is None else stat._replace(st_mtime_ns=int(changed * 1e9))


def _pin_revision(url: str) -> tuple[str, float | None]:
    """A repository's URL by the commit that its branch is at now, and the time of that.

    What is read then never changes. Other URLs stay as they are.
    """
    if not url.lower().startswith("hf://"):
        return url, None
    from huggingface_hub import HfApi, HfFileSystem
    from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

    resolved = HfFileSystem().resolve_path(url)
    if not isinstance(resolved, HfFileSystemResolvedRepositoryPath):
        return url, None
    kind = resolved.repo_type
    info = HfApi().repo_info(resolved.repo_id, repo_type=kind, revision=resolved.revision)
    prefix = "" if kind == "model" else f"{kind}s/"
    inside = f"/{resolved.path_in_repo}" if resolved.path_in_repo else ""
    changed = info.last_modified.timestamp() if info.last_modified else None
    return f"hf://{prefix}{resolved.repo_id}@{info.sha}{inside}", changed


def _list_files(
    files: AbstractFileSystem, place: str, name: str, query: str
) -> dict[str, dict[str, Any]]:
    """What is known of each file, by its name relative to ``place``."""
    if is_http(place):
        return _probe(files, place, name, query)
    found = files.find(place, maxdepth=_DEPTH, detail=True)
    root = files._strip_protocol(place).rstrip("/")
    listed = {path.removeprefix(f"{root}/"): info for path, info in found.items()}
    return {name: info for name, info in listed.items() if info.get("type") == "file"}


def _probe(
    files: AbstractFileSystem, place: str, name: str, query: str
) -> dict[str, dict[str, Any]]:
    """Ask a web server for a file, or for every file that a model may have."""

    def ask(name: str) -> dict[str, Any] | None:
        raise_if_interrupted()
        url = f"{place}/{name}{query}"
        try:
            with told_as_error(url, tr("asking whether the file is there")):
                return files.info(url)  # type: ignore[no-any-return]
        except MissingError:
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:

        def ask_all(names: list[str]) -> dict[str, dict[str, Any]]:
            answers = zip(names, pool.map(ask, names), strict=True)
            return {name: info for name, info in answers if info is not None}

        if name:
            return ask_all(_list_gguf_parts(name))
        found = ask_all(list(_USUAL_NAMES))
        for index in filter(found.__contains__, _INDEXES):
            content = files.cat_file(f"{place}/{index}{query}")
            found |= ask_all(_list_indexed(content))
        if "consolidated.00.pth" in found:
            found |= _ask_on(ask)
    return found


def _list_gguf_parts(name: str) -> list[str]:
    match = _GGUF_PART.fullmatch(name)
    if match is None or int(match["count"]) > _MOST_FILES:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]


def _list_indexed(content: bytes) -> list[str]:
    """The files that an index names; one that is damaged is refused when it is read as such."""
    try:
        values = json.loads(content)["weight_map"].values()
        names = {name for name in values if isinstance(name, str) and _PLAIN_NAME.fullmatch(name)}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return []
    return sorted(names)[:_MOST_FILES]


def _ask_on(ask: Callable[[str], dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Meta's further shards, until one is not there."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(1, 100):
        name = f"consolidated.{number:02}.pth"
        info = ask(name)
        if info is None:
            break
        found[name] = info
    return found


def can_read_parts(path: RemotePath) -> bool:
    """Whether the server sends parts of files, tried with one byte of the largest."""
    if not is_http(path.place.url):
        return True
    largest = max(path.place.files, key=lambda name: path.place.files[name].st_size)
    with RemoteStream(path.place.path(largest)) as stream:
        try:
            stream.read(1)
        except WholeFilesOnlyError:
            return False
    return True


def fetch(path: RemotePath, offload: Offload, wanted: Callable[[str], bool]) -> Path:
    """Copy the ``wanted`` files of a place, or the one file, into ``offload``; return the copy.

    Raises ``OutputError`` where the disk has no room.
    """
    names = [str(path.inside)] if path.is_file() else list(filter(wanted, path.place.files))
    folder = Path(tempfile.mkdtemp(dir=offload.ensure_folder())) / path.place.path(".").name
    require_space(offload.ensure_folder(), sum(path.place.files[n].st_size for n in names))
    folder.mkdir()
    offload.copies[folder] = str(path.place.path("."))
    read = _iter_parts if can_read_parts(path) else _iter_whole
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("xb") as sink:
            for piece in read(path.place, name):
                raise_if_interrupted()
                sink.write(piece)
    return folder / path.inside


def _iter_parts(place: RemoteFolder, name: str) -> Iterator[bytes]:
    with RemoteStream(place.path(name)) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _iter_whole(place: RemoteFolder, name: str) -> Iterator[bytes]:
    """The same of a server that sends no parts: a connection that breaks is not made again."""
    url, size = place.get_url(name), place.files[name].st_size
    if size <= SMALL_BYTES:
        yield place.read(name)
        return
    came = 0
    with told_as_error(url, tr("copying the file")):
        with place.file_system.open(url, "rb", block_size=0) as stream:
            while piece := stream.read(_PIECE):
                place.traffic.add(len(piece))
                came += len(piece)
                yield piece
        if came != size:
            raise EOFError(tr("{came:,} bytes came instead of {size:,}", came=came, size=size))
