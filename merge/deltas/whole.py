"""Tensors that an adapter holds whole: of several copies the trained one, checked."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import AdapterError
from ..lazy import LazyTensor, block_rows
from .adapter_config import AdapterConfig
from .keys import Claims


def whole_tensors(
    path: Path, config: AdapterConfig, claims: Claims
) -> tuple[dict[str, LazyTensor], frozenset[str], tuple[str, ...]]:
    """Whole tensors by name, those of them that were trained, and the keys left aside.

    The trained copy is ``modules_to_save``; PEFT 0.21 also saves it under the plain name, and the
    untrained one as ``original_module``.
    """
    plain, trained = claims.parts["plain"], claims.parts["modules_to_save"]
    originals = claims.parts["original_module"]
    replaced = {**claims.parts["base_layer"], **plain, **trained}
    for name in sorted(plain.keys() & trained.keys()):
        if not same_content(plain[name], trained[name]):
            raise AdapterError(
                "the adapter holds two different versions of one trained tensor",
                file=path,
                tensor=f"{name} and {_inside(name, 'modules_to_save')}",
                expected="equal tensors, as PEFT writes them",
                remedy="save the adapter again, or remove the one that is not meant",
            )
    for name, original in originals.items():
        if name not in replaced:
            raise AdapterError(
                "the adapter holds the untrained copy of a module without the trained one",
                file=path,
                tensor=_inside(name, "original_module"),
                expected=f"{_inside(name, 'modules_to_save')} beside it",
                remedy="the file is incomplete: save or fetch the adapter again",
            )
        if original.shape != replaced[name].shape:
            raise AdapterError(
                "the untrained copy of a module has another shape than the trained one",
                file=path,
                tensor=_inside(name, "original_module"),
                expected=replaced[name].shape,
                found=original.shape,
                remedy="save the adapter again, or remove the copy that is not meant",
            )
    ignored = [_inside(name, "original_module") for name in originals]
    ignored += [
        f"{module}.trainable_tokens_original"
        for module in claims.parts["trainable_tokens_original"]
    ]
    by_training = {name for name in plain if config.saves(name.rpartition(".")[0])} | set(trained)
    return replaced, frozenset(by_training), (*ignored, *claims.leftovers)


def _inside(name: str, part: str) -> str:
    """``X.part.weight`` for ``X.weight``."""
    module, _, rest = name.rpartition(".")
    return f"{module}.{part}.{rest}"


def same_content(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors are equal element by element, read in blocks up to the first difference.

    Each is opened once: opening a sum reads its factors, and with DoRA of columns all of its rows.
    """
    if one is other:
        return True
    if one.shape != other.shape:
        return False
    step = block_rows(one.shape)
    readers = [(tensor.dtype, tensor.reader()) for tensor in (one, other)]
    for start in range(0, one.rows, step):
        shape = (min(step, one.rows - start), *one.shape[1:])
        blocks = [torch.empty(shape, dtype=dtype) for dtype, _ in readers]
        for block, (_, read) in zip(blocks, readers, strict=True):
            read(start, start + len(block), block)
        if not torch.equal(blocks[0].float(), blocks[1].float()):
            return False
    return True
