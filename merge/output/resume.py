"""What an interrupted run has left, and how much of it is right."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..interruption import raise_if_interrupted
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

    ``unexplained`` entries of the journal were not believed. ``committed`` are the files' digests
    when all were whole; they only want their names. ``end`` is where the last line ends that says
    so.
    """

    done: int = 0
    files: Mapping[str, VerifiedPrefix] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    committed: Mapping[str, str] = field(default_factory=dict)
    end: int = 0
    unexplained: int = 0

    def __bool__(self) -> bool:
        return bool(self.done or self.committed)


def find_resume_point(
    folder: Path, record: JournalState, on_bytes: OnBytes = lambda _: None
) -> ResumePoint:
    """Hash what is there, and keep what the journal and all files agree on.

    ``on_bytes`` is called from several threads as bytes are read.
    """
    if record.committed and all(
        _is_whole(folder, name, digest, on_bytes) for name, digest in record.committed.items()
    ):
        return ResumePoint(committed=record.committed, end=record.end)
    names = {name for entry in record.entries for name in entry.files}
    with ThreadPoolExecutor(_THREADS) as pool:
        checks = {
            name: pool.submit(_hash_at_entries, folder, name, record.entries, on_bytes)
            for name in names
        }
        reached = {name: check.result() for name, check in checks.items()}
    agreed = min((len(entries) for entries in reached.values()), default=0)
    entries = record.entries[:agreed]
    files = {
        name: _build_prefix(name, entries, hashes[: len(entries)])
        for name, hashes in reached.items()
        if any(name in entry.files for entry in entries)
    }
    digests = {name: digest for entry in entries for name, digest in entry.digests.items()}
    return (
        ResumePoint(entries[-1].done, files, digests, end=entries[-1].end)
        if entries
        else ResumePoint()
    )


def select_matching_entries(
    entries: Sequence[JournalEntry], plan: Plan
) -> tuple[JournalEntry, ...]:
    """The first entries of a journal that the plan explains.

    Each is about the tensor after that of the entry before, and names the files that it went into,
    with as many whole tensors as the plan has for them by then.
    """
    finished: Counter[str] = Counter()
    due: Counter[str] = Counter()
    for number, entry in enumerate(entries):
        if entry.done != number + 1 or entry.done > len(plan.placed):
            return tuple(entries[:number])
        finished.update({name: len(place.tensor_crcs) for name, place in entry.files.items()})
        files = [piece.file for piece in plan.placed[number].pieces]
        due.update(files)
        if entry.files.keys() != set(files) or any(finished[f] != due[f] for f in files):
            return tuple(entries[:number])
    return tuple(entries)


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
