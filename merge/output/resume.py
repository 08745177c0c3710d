"""What an interrupted run has left, and how much of it is right."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..interruption import raise_if_interrupted
from ..layouts.placement import Stream, group_by_files
from ..sizes import OnBytes
from .journal import JournalEntry, JournalState, get_partial_path

if TYPE_CHECKING:
    from hashlib import _Hash as Sha256

    from ..plan.placement import Plan

_PIECE_BYTES = 4 << 20
_THREADS = 2


@dataclass(frozen=True)
class VerifiedPrefix:
    """The beginning of a file that is right: its length, SHA-256 so far, and its tensors."""

    nbytes: int
    sha256: Sha256
    tensor_crcs: tuple[int, ...]


@dataclass(frozen=True)
class ResumePoint:
    """What an earlier run has left that is right: ``done`` tensors of the plan, in these files.

    ``entries`` are those of the journal that say so; ``unexplained`` ones were not believed.
    ``digests`` are content digests. ``committed`` are the files' digests when all were whole; they
    only want their names.
    """

    entries: tuple[JournalEntry, ...] = ()
    files: Mapping[str, VerifiedPrefix] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    committed: Mapping[str, str] = field(default_factory=dict)
    unexplained: int = 0

    def __bool__(self) -> bool:
        return bool(self.entries or self.committed)

    @cached_property
    def done(self) -> frozenset[int]:
        """Numbers of the tensors that are whole."""
        return frozenset(number for entry in self.entries for number in entry.tensors)


def find_resume_point(
    folder: Path, record: JournalState, on_bytes: OnBytes = lambda _: None
) -> ResumePoint:
    """Hash what is there, and keep what the journal and the files agree on.

    In each stream that is up to the first entry on which one of its files does not agree.
    ``on_bytes`` is called from several threads as bytes are read.
    """
    if record.committed and all(
        _is_whole(folder, name, digest, on_bytes) for name, digest in record.committed.items()
    ):
        return ResumePoint(committed=record.committed)
    numbers = group_by_files([entry.files for entry in record.entries])
    groups = [[record.entries[number] for number in group] for group in numbers]
    with ThreadPoolExecutor(_THREADS) as pool:
        checks = [
            {
                name: pool.submit(_hash_at_entries, folder, name, entries, on_bytes)
                for name in {name for entry in entries for name in entry.files}
            }
            for entries in groups
        ]
        reached = [{name: one.result() for name, one in group.items()} for group in checks]
    kept: list[JournalEntry] = []
    files: dict[str, VerifiedPrefix] = {}
    for entries, hashes in zip(groups, reached, strict=True):
        agreed = min(map(len, hashes.values()))
        kept += entries[:agreed]
        files |= {
            name: _build_prefix(name, entries[:agreed], found[:agreed])
            for name, found in hashes.items()
            if any(name in entry.files for entry in entries[:agreed])
        }
    return ResumePoint(tuple(kept), files, record.digests) if kept else ResumePoint()


def keep_whole_streams(past: ResumePoint, plan: Plan) -> ResumePoint:
    """The same without streams that are not whole, for an engine that begins these anew."""
    whole = [stream for stream in plan.streams if past.done.issuperset(stream.tensors)]
    tensors = {number for stream in whole for number in stream.tensors}
    entries = tuple(entry for entry in past.entries if tensors.issuperset(entry.tensors))
    files = {
        file: past.files[file] for stream in whole for file in stream.files if file in past.files
    }
    return replace(past, entries=entries, files=files)


def select_matching_entries(
    entries: Sequence[JournalEntry], plan: Plan
) -> tuple[JournalEntry, ...]:
    """The entries of a journal that the plan explains, in each stream the first ones.

    Each is about the tensors that come next in a stream, and names the files that they went into,
    with as many whole tensors as the plan has for them by then.
    """
    streams = {number: stream for stream in plan.streams for number in stream.tensors}
    by_stream: dict[int, list[JournalEntry]] = {}
    for entry in entries:
        if entry.tensors and (stream := streams.get(entry.tensors[0])):
            by_stream.setdefault(stream.tensors[0], []).append(entry)
    return tuple(
        entry
        for first, mine in by_stream.items()
        for entry in mine[: _count_matching(streams[first], mine, plan)]
    )


def _count_matching(stream: Stream, entries: Sequence[JournalEntry], plan: Plan) -> int:
    """How many of a stream's entries match the plan, up to the first that does not."""
    done = 0
    for number, entry in enumerate(entries):
        tensors = stream.tensors[done : done + len(entry.tensors)]
        pieces = [piece.file for one in tensors for piece in plan.placed[one].pieces]
        finished = {name: len(place.tensor_crcs) for name, place in entry.files.items()}
        if entry.tensors != tensors or finished != Counter(pieces):
            return number
        done += len(tensors)
    return len(entries)


def _is_whole(folder: Path, name: str, digest: str, on_bytes: OnBytes) -> bool:
    """Whether a file is right, under its name or about to get it."""
    path = get_partial_path(folder, name)
    path = path if os.path.lexists(path) else folder / name
    if path.is_symlink():
        return False
    try:
        with path.open("rb", buffering=0) as stream:
            hasher = sha256()
            _hash_next(stream, hasher, path.stat().st_size, on_bytes)
            return hasher.hexdigest() == digest
    except OSError:
        return False


def _hash_at_entries(
    folder: Path, name: str, entries: Sequence[JournalEntry], on_bytes: OnBytes
) -> list[Sha256 | None]:
    """SHA-256 of a file at each entry, as long as file and entries agree; None before it began."""
    hasher, begun = sha256(), False
    hashes: list[Sha256 | None] = []
    path = get_partial_path(folder, name)
    if path.is_symlink():
        return [None] * _count_entries_before(name, entries)
    try:
        with path.open("rb", buffering=0) as stream:
            for entry in entries:
                if place := entry.files.get(name):
                    whole = _hash_next(stream, hasher, place.nbytes - stream.tell(), on_bytes)
                    if not whole or hasher.hexdigest() != place.sha256:
                        break
                    begun = True
                hashes.append(hasher.copy() if begun else None)
    except FileNotFoundError:
        hashes += [None] * _count_entries_before(name, entries)
    return hashes


def _count_entries_before(name: str, entries: Sequence[JournalEntry]) -> int:
    return next(number for number, entry in enumerate(entries) if name in entry.files)


def _hash_next(stream: BinaryIO, hasher: Sha256, count: int, on_bytes: OnBytes) -> bool:
    """Hash the next bytes; False when the file has fewer."""
    buffer = memoryview(bytearray(min(_PIECE_BYTES, max(1, count))))
    while count > 0:
        raise_if_interrupted()
        taken = stream.readinto(buffer[:count])  # type: ignore[attr-defined]
        if not taken:
            return False
        hasher.update(buffer[:taken])
        count -= taken
        on_bytes(taken)
    return True


def _build_prefix(
    name: str, entries: Sequence[JournalEntry], hashes: Sequence[Sha256 | None]
) -> VerifiedPrefix:
    places = [entry.files[name] for entry in entries if name in entry.files]
    hasher = hashes[-1]
    assert hasher is not None
    return VerifiedPrefix(
        places[-1].nbytes, hasher, tuple(n for place in places for n in place.tensor_crcs)
    )
