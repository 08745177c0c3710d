"""Rows of added tokens that an adapter's folder holds beside the adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..errors import AdapterError
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..messages import tr
from ..tensors.lazy import Checkpoint, LazyTensor, RowReader, scratch
from .adapter import Adapter
from .new_rows import Grown, NewRows


@dataclass(frozen=True)
class Appended(LazyTensor):
    """All rows of ``head``, then all rows of ``tail``."""

    head: LazyTensor
    tail: LazyTensor

    def without_digest(self) -> LazyTensor:
        return replace(self, head=self.head.without_digest(), tail=self.tail.without_digest())

    def reader(self) -> RowReader:
        parts = ((self.head, 0), (self.tail, self.head.rows))
        readers = [(tensor, tensor.reader(), offset) for tensor, offset in parts]

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            for tensor, read, offset in readers:
                first, last = max(start, offset), min(stop, offset + tensor.rows)
                if first < last:
                    rows = scratch("appended", (last - first, *self.shape[1:]), tensor.dtype)
                    read(first - offset, last - offset, rows)
                    out[first - start : last - start].copy_(rows)

        return fill


def with_new_rows(base: Checkpoint, adapter: Adapter, init: str | None) -> Checkpoint:
    """The base with an adapter's rows of added tokens behind its own.

    Where the adapter has none for the LM head, as Open-Assistant's, they begin as ``init`` says.
    Raises ``AdapterError`` for rows of another width, and without ``init`` for lacking ones.
    """
    if not adapter.new_rows:
        return base
    tensors = dict(base.tensors)
    count = next(iter(adapter.new_rows.values())).rows
    for name in (EMBED_TOKENS, LM_HEAD):
        if name in tensors:
            rows = adapter.new_rows.get(name)
            if rows is None:
                tensors[name] = _append_initialized(adapter, tensors[name], count, init)
            else:
                tensors[name] = _append_rows(adapter, name, tensors[name], rows)
    return replace(base, tensors=tensors)


def _append_rows(adapter: Adapter, name: str, old: LazyTensor, rows: LazyTensor) -> LazyTensor:
    if rows.shape[1:] != old.shape[1:]:
        raise AdapterError(
            tr("the rows of added tokens are for a model of another size"),
            file=adapter.files.new_rows,
            tensor=name,
            expected=tr("{shape} columns, as in the base model", shape=old.shape[1:]),
            found=rows.shape[1:],
            remedy=tr("give the base that the adapter was trained on"),
        )
    shape = (old.rows + rows.rows, *old.shape[1:])
    dtype = torch.promote_types(old.dtype, rows.dtype)
    return Appended(shape, dtype, f"{old.origin}, then {rows.origin}", old, rows)


def _append_initialized(
    adapter: Adapter, old: LazyTensor, count: int, init: str | None
) -> LazyTensor:
    if init not in ("mean", "zeros"):
        raise AdapterError(
            tr(
                "the adapter brings embeddings of added tokens, and no rows of the LM head for them"
            ),
            file=adapter.files.new_rows,
            tensor=LM_HEAD,
            expected=tr("{count} rows for the LM head too", count=count),
            found=tr("--new_token_init {init}", init=init) if init else tr("none"),
            remedy=tr(
                "say how they begin with --new_token_init mean or zeros; the program "
                "that wrote the file takes random ones"
            ),
        )
    shape = (old.rows + count, *old.shape[1:])
    new = NewRows(init, ((),) * count, 0.0, 0)
    return Grown(
        shape,
        old.dtype,
        tr("{origin}, new rows from {init}", origin=old.origin, init=init),
        old,
        old.rows,
        new,
    )
