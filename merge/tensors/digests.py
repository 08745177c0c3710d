"""Content digests: of a tensor, whatever container holds it.

XXH3 (128 bits) of its bytes in Hugging Face's order of rows, before a layout turns or splits them:
the same for every container and sharding of a model. It finds every accident at a tenth of the cost
of SHA-256, but does not protect against malice; that is what the files' own digests are for
(``checksums/file_digests.py``).

There are two versions. Version 1 is XXH3-128 of all bytes. Version 2 can be made in parts, in any
order, by several threads or processes: the rows are divided into blocks of ``block_rows(shape)``
rows, of which the last may have fewer; the digest is XXH3-128 of the blocks' XXH3-128, each as 16
bytes in canonical (big-endian) order, one after the other. A tensor of one block is no exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock

import torch
from xxhash import xxh3_128

from ..storage.input_file import view_as_bytes
from .lazy import Checkpoint, LazyTensor, RowReader, block_rows, scratch

_PIECE_BYTES = 1 << 20

PartialDigest = str | dict[int, str]
"""What is known of a tensor: its digest, or those of some blocks by number, in hexadecimal."""


class _OpenBlock:
    """A block of which only some rows have come; rows that come early are copied."""

    def __init__(self) -> None:
        self._xxh3 = xxh3_128()
        self._early: dict[int, torch.Tensor] = {}
        self.rows = 0

    def add(self, start: int, rows: torch.Tensor) -> None:
        """Take rows of the block, ``start`` counted in it; what came before is passed over."""
        if start > self.rows:
            known = self._early.get(start)
            if known is None or len(known) < len(rows):
                self._early[start] = rows.clone()
            return
        self._take(start, rows)
        for first in sorted(self._early):
            if first > self.rows:
                break
            self._take(first, self._early.pop(first))

    def _take(self, start: int, rows: torch.Tensor) -> None:
        fresh = rows[self.rows - start :]
        if len(fresh):
            self._xxh3.update(view_as_bytes(fresh))
            self.rows += len(fresh)

    def digest(self) -> bytes:
        """XXH3 of the rows that have come in order."""
        return self._xxh3.digest()


class BlockDigest:
    """The content digest (version 2) of a tensor of ``shape``.

    Rows may come in any order, twice, and from several threads; none waits for another one. Blocks
    that come whole are hashed where they are; the others are continued as their rows come.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rows = shape[0] if shape else 1
        self._grid = block_rows(shape)
        self._lock = Lock()
        self._blocks: dict[int, bytes] = {}
        self._open: dict[int, _OpenBlock] = {}
        self._known: str | None = None
        self._combine()

    def add(self, start: int, rows: torch.Tensor) -> None:
        """Take rows of the tensor, from ``start`` on."""
        end = start + len(rows)
        if start == end:
            return
        for block in range(start // self._grid, -(-end // self._grid)):
            first, last = block * self._grid, min((block + 1) * self._grid, self._rows)
            low, high = max(start, first), min(end, last)
            if self._known is not None or block in self._blocks:
                continue
            part = rows[low - start : high - start]
            if (low, high) == (first, last):
                self._note({block: xxh3_128(view_as_bytes(part)).digest()})
            else:
                self._add_part(block, low - first, part, last - first)

    def _add_part(self, block: int, start: int, part: torch.Tensor, size: int) -> None:
        with self._lock:
            if self._known is not None or block in self._blocks:
                return
            open_block = self._open.setdefault(block, _OpenBlock())
            open_block.add(start, part)
            if open_block.rows < size:
                return
        self._note({block: open_block.digest()})

    def _note(self, blocks: Mapping[int, bytes]) -> None:
        with self._lock:
            if self._known is None:
                self._blocks |= blocks
                for block in blocks:
                    self._open.pop(block, None)
                self._combine()

    def _combine(self) -> None:
        """Make the digest when all blocks are there, and forget them."""
        count = -(-self._rows // self._grid)
        if len(self._blocks) == count:
            self._known = xxh3_128(b"".join(self._blocks[n] for n in range(count))).hexdigest()
            self._blocks, self._open = {}, {}

    def hexdigest(self) -> str | None:
        """The digest, or None unless all rows of the tensor have come."""
        return self._known

    def get_state(self) -> PartialDigest:
        """What is known by now, as a plain value that another process can ``add_state``.

        Blocks of which only some rows have come are not in it.
        """
        with self._lock:
            if self._known is not None:
                return self._known
            return {number: digest.hex() for number, digest in self._blocks.items()}

    def add_state(self, state: PartialDigest) -> None:
        """Take what another process or an earlier run knows of the same tensor."""
        if isinstance(state, str):
            with self._lock:
                self._known, self._blocks, self._open = state, {}, {}
        else:
            self._note({number: bytes.fromhex(digest) for number, digest in state.items()})


class WholeDigest:
    """The content digest of version 1, which manifests of earlier releases hold; rows in order."""

    def __init__(self) -> None:
        self._xxh3 = xxh3_128()

    def add(self, _: int, rows: torch.Tensor) -> None:
        """Take the next rows of the tensor."""
        self._xxh3.update(view_as_bytes(rows))

    def hexdigest(self) -> str:
        """The digest of all rows that have come."""
        return self._xxh3.hexdigest()


# Where a manifest has the digest of a tensor. Each version has a name of its own, so that a release
# that knows only the first says that there is no digest rather than that it is another one.
DIGEST_KEYS = {1: "xxh3_128", 2: "xxh3_128_of_blocks"}
DIGEST_VERSION = 2


def make_digest(shape: tuple[int, ...], version: int) -> BlockDigest | WholeDigest:
    """A digest of ``version`` of a tensor of ``shape``, whose rows are still to come, in order."""
    return WholeDigest() if version == 1 else BlockDigest(shape)


@dataclass(frozen=True)
class _DigestedTensor(LazyTensor):
    """A tensor whose digest is made as it is read."""

    base: LazyTensor
    digest: BlockDigest

    @property
    def rejects_nonfinite(self) -> bool:
        return self.base.rejects_nonfinite

    def without_digest(self) -> LazyTensor:
        """``base`` itself, for what reads a tensor once more."""
        return self.base

    def reader(self) -> RowReader:
        base_rows, digest = self.base.reader(), self.digest

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            base_rows(start, stop, out)
            digest.add(start, out)

        return fill


def add_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors, with a digest made of each as it is read."""
    return {name: _add_digest(tensor.unchanged_source()) for name, tensor in tensors.items()}


def _add_digest(tensor: LazyTensor) -> LazyTensor:
    """What passes on a tensor that has a digest already needs no second one."""
    if isinstance(tensor, _DigestedTensor):
        return tensor
    digest = BlockDigest(tensor.shape)
    return _DigestedTensor(tensor.shape, tensor.dtype, tensor.origin, tensor, digest)


def add_checkpoint_digests(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, with a digest made of every tensor that is read."""
    return replace(checkpoint, tensors=add_digests(checkpoint.tensors))


def compute_digest(tensor: LazyTensor, version: int = DIGEST_VERSION) -> str:
    """Read a tensor, in blocks, for its digest."""
    digest, read = make_digest(tensor.shape, version), tensor.without_digest().reader()
    grid = block_rows(tensor.shape)
    step = grid * max(1, _PIECE_BYTES // max(1, grid * tensor.row_bytes))
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        rows = scratch("digest", (stop - start, *tensor.shape[1:]), tensor.dtype)
        read(start, stop, rows)
        digest.add(start, rows)
    known = digest.hexdigest()
    assert known is not None
    return known


class FreshDigests:
    """The content digests of tensors, each returned once, when it is known.

    Those that are ``known`` from an earlier run need not be made and are not returned.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], known: Mapping[str, str]) -> None:
        add_partial_digests(tensors, known)
        self._open = {
            name: tensor
            for name, tensor in tensors.items()
            if isinstance(tensor, _DigestedTensor) and name not in known
        }

    def take(self) -> dict[str, str]:
        """Those that have become known since the last call."""
        known = {name: digest for name, digest in get_digests(self._open).items() if digest}
        for name in known:
            del self._open[name]
        return known


def get_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, str | None]:
    """The digest of each tensor that was read whole, None for those that were not needed."""
    return {
        name: tensor.digest.hexdigest() if isinstance(tensor, _DigestedTensor) else None
        for name, tensor in tensors.items()
    }


def get_partial_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, PartialDigest]:
    """What is known of the digests by now, for ``add_partial_digests`` in another process."""
    states = {
        name: tensor.digest.get_state()
        for name, tensor in tensors.items()
        if isinstance(tensor, _DigestedTensor)
    }
    return {name: state for name, state in states.items() if state}


def add_partial_digests(
    tensors: Mapping[str, LazyTensor], states: Mapping[str, PartialDigest]
) -> None:
    """Take what another process, or an earlier run, knows of these tensors' digests."""
    for name, state in states.items():
        if isinstance(tensor := tensors.get(name), _DigestedTensor):
            tensor.digest.add_state(state)
