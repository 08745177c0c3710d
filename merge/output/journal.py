"""The journal of a run: how far its files had come, so that an interrupted run can be resumed.

Lines of JSON in the output folder: what the run is (``fingerprint.py``), then, whenever a tensor is
whole, how long each file was that it went into and SHA-256 of the file up to there, and at last
what every file is to be, before they get their names. Nothing here is believed unless the files
agree with it, so lines need not be durable, but for the last one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..storage.open_flags import NO_FOLLOW

JOURNAL_NAME = ".merge_journal"
_FORMAT = 1


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
    """One line: ``done`` tensors of the plan are whole. ``digests`` are those of tensors' contents
    that became known; the line ends at byte ``end`` of the journal.
    """

    done: int
    files: Mapping[str, FileProgress]
    digests: Mapping[str, str]
    end: int = 0


@dataclass(frozen=True)
class JournalState:
    """A journal as it was found; ``committed`` are the files' digests if all of them were whole.

    ``files`` are the names that the run was to write, ``replaces`` those of an earlier result that
    it was allowed to replace. The last line that is whole ends at byte ``end``.
    """

    identity: Mapping[str, Any]
    files: tuple[str, ...]
    replaces: tuple[str, ...]
    entries: tuple[JournalEntry, ...]
    committed: Mapping[str, str]
    end: int

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
    lines, end = [], 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        if not line.endswith(b"\n"):
            break
        try:
            lines.append((json.loads(line), end))
        except (ValueError, RecursionError):
            break
    try:
        return _parse_record(lines)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _parse_record(lines: Sequence[tuple[Any, int]]) -> JournalState | None:
    head = lines[0][0]
    if head["format"] != _FORMAT:
        return None
    entries = tuple(_parse_entry(line, end) for line, end in lines[1:] if "done" in line)
    committed = [dict(line["committed"]) for line, _ in lines if "committed" in line]
    last = committed[-1] if committed else {}
    files, replaces = tuple(head["files"]), tuple(head["replaces"])
    for name in (*files, *replaces, *last, *(name for entry in entries for name in entry.files)):
        if Path(name).name != name:  # nothing outside the folder is read, moved or removed
            return None
    return JournalState(head["identity"], files, replaces, entries, last, lines[-1][1])


def _parse_entry(line: Mapping[str, Any], end: int) -> JournalEntry:
    files = {
        name: FileProgress(int(nbytes), str(digest), tuple(map(int, finished)))
        for name, (nbytes, digest, finished) in line["files"].items()
    }
    return JournalEntry(int(line["done"]), files, dict(line["digests"]), end)


class _DigestSource(Protocol):
    """A stream that has SHA-256 of its bytes up to a marked place, a little later."""

    digests: dict[int, str]


@dataclass(frozen=True)
class PendingProgress:
    """A place in a file that is being written; its digest is still to come."""

    stream: _DigestSource
    nbytes: int
    tensor_crcs: tuple[int, ...]


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
        self._waiting: list[
            tuple[int, Mapping[str, PendingProgress | FileProgress], Mapping[str, str]]
        ] = []
        self.is_useful = False

    def start(self) -> None:
        """Start a new journal.

        There is a journal at every moment: only an earlier one may know whose the files are that a
        killed run has put in place.
        """
        self._fresh.unlink(missing_ok=True)
        with self._fresh.open("xb") as stream:
            end = stream.write(_encode_line(self._head))
        self._fresh.replace(self._path)
        self._open(end)

    def resume(self, end: int) -> None:
        """Write on after the lines up to byte ``end``; the others were not right."""
        self._open(end)
        self.is_useful = True

    def _open(self, end: int) -> None:
        flags = os.O_RDWR | NO_FOLLOW | getattr(os, "O_BINARY", 0)
        self._stream = os.fdopen(os.open(self._path, flags), "r+b")
        self._stream.truncate(end)
        self._stream.seek(end)

    def add(
        self,
        done: int,
        files: Mapping[str, PendingProgress | FileProgress],
        digests: Mapping[str, str],
    ) -> None:
        """Note that ``done`` tensors are whole; the line is written when all digests are there."""
        self._waiting.append((done, files, digests))
        self.flush()

    def flush(self) -> None:
        """Write down what is known by now, in order."""
        while self._waiting:
            done, files, digests = self._waiting[0]
            places = {name: _encode_place(place) for name, place in files.items()}
            if None in places.values():
                return
            self._write({"done": done, "files": places, "digests": digests})
            del self._waiting[0]
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


def _encode_place(place: PendingProgress | FileProgress) -> tuple[int, str, tuple[int, ...]] | None:
    if isinstance(place, FileProgress):
        return place.nbytes, place.sha256, place.tensor_crcs
    digest = place.stream.digests.get(place.nbytes)
    return None if digest is None else (place.nbytes, digest, place.tensor_crcs)
