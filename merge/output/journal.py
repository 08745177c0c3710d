"""The journal of a run: how far its files had come, so that an interrupted run can be resumed.

Lines of JSON in the output folder: what the run is (``fingerprint.py``), then, whenever tensors are
whole, which these are in the plan, how long each file was that they went into and SHA-256 of the
file up to there, and at last what every file is to be, before they get their names. Streams write
side by side, so tensors come in any order, but in that of the plan within each stream. A file that
was written elsewhere is one entry with all its tensors. None of that is believed unless the files
agree with it, so lines need not be durable, but for the last one.

Content digests have lines of their own. The same run finds the same content again, so these are
kept where a file has lost the tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

from ..storage.open_flags import NO_FOLLOW

JOURNAL_NAME = ".merge_journal"
_FORMAT = 2
# In the first one, tensors were counted; what it says of them is of no use, all else is.
_FIRST_FORMAT = 1


def get_partial_path(folder: Path, name: str) -> Path:
    """Where a file is written before it gets its name."""
    return folder / f".{name}.partial"


@dataclass(frozen=True)
class WrittenFile:
    """Size and SHA-256 of a file that was written whole."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class FileProgress:
    """How far a file had come: its length, SHA-256 up to there, and the CRC-32 of each tensor that
    was finished since the entry before (0 where the container has none).
    """

    nbytes: int
    sha256: str
    tensor_crcs: tuple[int, ...]


@dataclass(frozen=True)
class JournalEntry:
    """One line: ``tensors`` of the plan are whole, with which the files had come this far."""

    tensors: tuple[int, ...]
    files: Mapping[str, FileProgress]


@dataclass(frozen=True)
class JournalState:
    """A journal as it was found; ``committed`` are the files' digests if all of them were whole.

    ``files`` are the names that the run was to write, ``replaces`` those of an earlier result that
    it was allowed to replace. ``digests`` are content digests of tensors, by name.
    """

    identity: Mapping[str, Any]
    files: tuple[str, ...]
    replaces: tuple[str, ...]
    entries: tuple[JournalEntry, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    committed: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_useful(self) -> bool:
        """Whether there may be anything to resume from."""
        return bool(self.entries or self.committed)


def read_journal(folder: Path) -> JournalState | None:
    """The journal of an interrupted run, as far as its lines are whole; None if it is of no use."""
    path = folder / JOURNAL_NAME
    try:
        text = b"" if path.is_symlink() else path.read_bytes()
    except OSError:
        return None
    lines = []
    for line in text.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    try:
        return _parse_record(lines)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _parse_record(lines: Sequence[Any]) -> JournalState | None:
    head, *rest = lines
    if head["format"] not in (_FORMAT, _FIRST_FORMAT):
        return None
    noted = rest if head["format"] == _FORMAT else []
    entries = tuple(_parse_entry(line) for line in noted if "tensors" in line)
    found = [(str(name), str(d)) for line in noted for name, d in line.get("content", {}).items()]
    committed = [dict(line["committed"]) for line in rest if "committed" in line]
    last = committed[-1] if committed else {}
    files, replaces = tuple(head["files"]), tuple(head["replaces"])
    for name in (*files, *replaces, *last, *(name for entry in entries for name in entry.files)):
        if Path(name).name != name:  # nothing outside the folder is read, moved or removed
            return None
    return JournalState(head["identity"], files, replaces, entries, dict(found), last)


def _parse_entry(line: Mapping[str, Any]) -> JournalEntry:
    files = {
        name: FileProgress(int(nbytes), str(digest), tuple(map(int, finished)))
        for name, (nbytes, digest, finished) in line["files"].items()
    }
    return JournalEntry(tuple(map(int, line["tensors"])), files)


class _DigestSource(Protocol):
    """A stream that has SHA-256 of its bytes up to a marked place, a little later."""

    digests: dict[int, str]


@dataclass(frozen=True)
class PendingProgress:
    """A place in a file that is being written; its digest is still to come."""

    stream: _DigestSource
    nbytes: int
    tensor_crcs: tuple[int, ...]


_Place = PendingProgress | FileProgress


class Journal:
    """What a run writes down in ``folder`` while the folder is locked.

    ``identity`` says what the run is; ``files`` names what it writes, ``replaces`` what it may
    replace.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        files: Iterable[str],
        replaces: Iterable[str],
    ) -> None:
        self._path = folder / JOURNAL_NAME
        self._fresh = folder / f"{JOURNAL_NAME}.new"
        names = {"files": list(files), "replaces": list(replaces)}
        self._head = {"format": _FORMAT, "identity": identity, **names}
        self._stream: BinaryIO | None = None
        self._waiting: list[tuple[Sequence[int], Mapping[str, _Place]]] = []
        self._lock = Lock()
        self.is_useful = False

    def start(self) -> None:
        """Start a new journal.

        There is a journal at every moment: only an earlier one may know whose the files are that a
        killed run has put in place.
        """
        self._begin([])

    def resume(
        self,
        entries: Iterable[JournalEntry],
        digests: Mapping[str, str],
        committed: Mapping[str, str],
    ) -> None:
        """Go on after what was right of an earlier journal, in whose place this one is put."""
        lines: list[Mapping[str, Any]] = [{"content": dict(digests)}] if digests else []
        lines += [_describe_entry(entry.tensors, entry.files) for entry in entries]
        self._begin([*lines, {"committed": dict(committed)}] if committed else lines)
        self.is_useful = True

    def _begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._fresh.unlink(missing_ok=True)
        with self._fresh.open("xb") as stream:
            for line in (self._head, *lines):
                stream.write(_encode_line(line))
            if lines:  # a power cut must not take what was durable
                stream.flush()
                os.fsync(stream.fileno())
        self._fresh.replace(self._path)
        flags = os.O_WRONLY | os.O_APPEND | NO_FOLLOW | getattr(os, "O_BINARY", 0)
        self._stream = os.fdopen(os.open(self._path, flags), "ab")

    def add(
        self, tensors: Sequence[int], files: Mapping[str, _Place], digests: Mapping[str, str]
    ) -> None:
        """Note that ``tensors`` are whole, and content digests that have become known.

        The line about the tensors is written when the digests of all ``files`` are there, and after
        those that came before it about any of these files. May be called from several threads.
        """
        with self._lock:
            if digests:
                self._write({"content": dict(digests)})
            self._waiting.append((tensors, files))
        self.flush()

    def flush(self) -> None:
        """Write down what is known by now, for each file in order."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            held: set[str] = set()
            for tensors, files in waiting:
                places = {name: _find_progress(place) for name, place in files.items()}
                known = {name: place for name, place in places.items() if place is not None}
                if len(known) < len(places) or held & places.keys():
                    held |= places.keys()
                    self._waiting.append((tensors, files))
                else:
                    self._write(_describe_entry(tensors, known))
                    self.is_useful = True

    def commit(self, digests: Mapping[str, str]) -> None:
        """Note, durably, that all files are whole and durable."""
        self._write({"committed": dict(digests)})
        assert self._stream is not None
        os.fsync(self._stream.fileno())
        self.is_useful = True

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(_encode_line(line))
        self._stream.flush()

    def close(self) -> None:
        """Close the file and leave it there."""
        if self._stream is not None:
            self._stream.close()

    def remove(self) -> None:
        """Close the file and remove it."""
        self.close()
        for path in (self._fresh, self._path):
            path.unlink(missing_ok=True)


def _encode_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _describe_entry(tensors: Sequence[int], files: Mapping[str, FileProgress]) -> Mapping[str, Any]:
    places = {
        name: (place.nbytes, place.sha256, place.tensor_crcs) for name, place in files.items()
    }
    return {"tensors": tensors, "files": places}


def _find_progress(place: _Place) -> FileProgress | None:
    """A place with its digest; None as long as that is not there."""
    if isinstance(place, FileProgress):
        return place
    digest = place.stream.digests.get(place.nbytes)
    return None if digest is None else FileProgress(place.nbytes, digest, place.tensor_crcs)
