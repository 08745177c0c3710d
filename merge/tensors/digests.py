"""Content digests: of a tensor, whatever container holds it.

XXH3 (128 bits) of its bytes in Hugging Face's order of rows, before a layout turns or splits them:
the same for every container and sharding of a model. It finds every accident at a tenth of the cost
of SHA-256, but does not protect against malice; that is what the files' own digests are for
(``checksums/file_digests.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Condition

import torch
from xxhash import xxh3_128

from ..storage.input_file import view_as_bytes
from .lazy import Checkpoint, LazyTensor, RowReader, scratch

_PIECE_BYTES = 1 << 20


class _RowDigest:
    """XXH3 over rows that several threads read, taken in the order of the rows.

    A thread that comes early waits for its turn, which is short: spans are read in their order.
    """

    def __init__(self) -> None:
        self._xxh3 = xxh3_128()
        self._turn = Condition()
        self._rows = 0
        self._abandoned = False
        self._known: str | None = None

    def update(self, start: int, block: torch.Tensor) -> None:
        """Take the rows from ``start`` on; what was taken before is passed over."""
        with self._turn:
            self._turn.wait_for(lambda: self._abandoned or self._rows >= start)
            fresh = block[max(0, self._rows - start) :]
            if len(fresh) and not self._abandoned:
                self._xxh3.update(view_as_bytes(fresh))
                self._rows += len(fresh)
            self._turn.notify_all()

    def abandon(self) -> None:
        """Release the threads that wait: rows before theirs could not be read."""
        with self._turn:
            self._abandoned = True
            self._turn.notify_all()

    def hexdigest(self, rows: int) -> str | None:
        """The digest, or None unless all of the tensor's ``rows`` have passed."""
        if self._rows != rows:
            return None
        return self._known or self._xxh3.hexdigest()

    def restore(self, hexdigest: str, rows: int) -> None:
        """Take the digest as known: all of the tensor's ``rows`` passed in an earlier run."""
        self._known, self._rows = hexdigest, rows


@dataclass(frozen=True)
class _DigestedTensor(LazyTensor):
    """A tensor whose digest is made as it is read."""

    base: LazyTensor
    digest: _RowDigest = field(default_factory=_RowDigest)

    @property
    def rejects_nonfinite(self) -> bool:
        return self.base.rejects_nonfinite

    def without_digest(self) -> LazyTensor:
        """``base`` itself: a digest would wait for the rows that are passed over."""
        return self.base

    def reader(self) -> RowReader:
        base_rows = self.base.reader()

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            try:
                base_rows(start, stop, out)
            except BaseException:
                self.digest.abandon()
                raise
            self.digest.update(start, out)

        return fill


def add_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors, with a digest made of each as it is read."""
    return {name: _add_digest(tensor.unchanged_source()) for name, tensor in tensors.items()}


def _add_digest(tensor: LazyTensor) -> LazyTensor:
    """What passes on a tensor that has a digest already needs no second one."""
    if isinstance(tensor, _DigestedTensor):
        return tensor
    return _DigestedTensor(tensor.shape, tensor.dtype, tensor.origin, tensor)


def add_checkpoint_digests(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, with a digest made of every tensor that is read."""
    return replace(checkpoint, tensors=add_digests(checkpoint.tensors))


def compute_digest(tensor: LazyTensor) -> str:
    """Read a tensor, in blocks, for its digest."""
    digest, read = xxh3_128(), tensor.without_digest().reader()
    step = max(1, _PIECE_BYTES // max(1, tensor.row_bytes))
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        rows = scratch("digest", (stop - start, *tensor.shape[1:]), tensor.dtype)
        read(start, stop, rows)
        digest.update(view_as_bytes(rows))
    return digest.hexdigest()


class FreshDigests:
    """The content digests of tensors, each returned once, when it is known.

    Those that are ``known`` from an earlier run need not be made and are not returned.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], known: Mapping[str, str]) -> None:
        self._open = {
            name: item for name, item in tensors.items() if isinstance(item, _DigestedTensor)
        }
        for name, digest in known.items():
            if tensor := self._open.pop(name, None):
                tensor.digest.restore(digest, tensor.rows)

    def take(self) -> dict[str, str]:
        """Those that have become known since the last call."""
        known = {
            name: digest
            for name, tensor in self._open.items()
            if (digest := tensor.digest.hexdigest(tensor.rows)) is not None
        }
        for name in known:
            del self._open[name]
        return known


def get_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, str | None]:
    """XXH3 of each tensor that was read whole, None for those that were not needed."""
    return {
        name: tensor.digest.hexdigest(tensor.rows) if isinstance(tensor, _DigestedTensor) else None
        for name, tensor in tensors.items()
    }
