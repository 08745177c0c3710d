"""Tensors that an adapter holds whole: of several copies the trained one, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import AdapterError
from ..formats.file_tensor import FileTensor
from ..layouts.decoder import VOCABULARY_TENSORS
from ..messages import tr
from ..tensors.lazy import LazyTensor, block_rows
from .adapter_config import AdapterConfig
from .keys import AdapterKeys

# Two tensors that must be equal, under the names of both.
Copies = Mapping[str, tuple[LazyTensor, LazyTensor]]


def collect_saved_modules(
    path: Path, config: AdapterConfig, keys: AdapterKeys
) -> tuple[dict[str, LazyTensor], frozenset[str], tuple[str, ...], Copies]:
    """Collect whole tensors by name, the trained ones among them, ignored keys, and copies.

    The trained copy is ``modules_to_save``; PEFT 0.21 also saves it under the plain name, and the
    untrained one as ``original_module``.
    """
    plain, trained = keys.parts["plain"], keys.parts["modules_to_save"]
    originals = keys.parts["original_module"]
    replaced = {**keys.parts["base_layer"], **plain, **trained}
    copies = _pair_copies(keys)
    for names, (one, other) in sorted(copies.items()):
        if one.shape != other.shape:
            raise _copies_error(path, names)
    for name, original in originals.items():
        if name not in plain and name not in trained:
            raise AdapterError(
                tr("the adapter holds the untrained copy of a module without the trained one"),
                file=path,
                tensor=spell_key(name, "original_module"),
                expected=tr("{spell_key} beside it", spell_key=spell_key(name, "modules_to_save")),
                remedy=tr("the file is incomplete: save or fetch the adapter again"),
            )
        if original.shape != replaced[name].shape:
            raise AdapterError(
                tr("the untrained copy of a module has another shape than the trained one"),
                file=path,
                tensor=spell_key(name, "original_module"),
                expected=replaced[name].shape,
                found=original.shape,
                remedy=tr("save the adapter again, or remove the copy that is not meant"),
            )
    ignored = [spell_key(name, "original_module") for name in originals]
    ignored += [
        f"{module}.trainable_tokens_original" for module in keys.parts["trainable_tokens_original"]
    ]
    by_training = _find_trained(config, keys)
    return replaced, frozenset(by_training), (*ignored, *keys.leftovers), copies


def _find_trained(config: AdapterConfig, keys: AdapterKeys) -> set[str]:
    """Names of whole tensors that the training changed; the others are the base's own.

    PEFT compares the ends of modules' names without the dot before them, so that ``norm`` is for
    every kind of norm too (``_set_trainable``), and with ``ensure_weight_tying`` it saves the other
    side of tied embeddings as well.
    """
    names = {*keys.parts["plain"], *keys.parts["base_layer"]}
    trained = {*keys.parts["modules_to_save"]}
    trained |= {name for name in keys.parts["plain"] if _is_saved(name, config.modules_to_save)}
    if config.ensure_weight_tying and trained & {*VOCABULARY_TENSORS}:
        trained |= names & {*VOCABULARY_TENSORS}
    if config.bias in ("all", "lora_only"):
        trained |= {name for name in names if name.endswith(".bias")}
    return trained


def _is_saved(name: str, modules: tuple[str, ...]) -> bool:
    parents = (name[: match.start()] for match in re.finditer(r"\.", name))
    return any(parent.endswith(modules) for parent in parents)


def _pair_copies(keys: AdapterKeys) -> Copies:
    """Pairs of copies of one tensor: each that is there, and the one that counts more than it."""
    held: dict[str, tuple[str, LazyTensor]] = {}
    pairs: dict[str, tuple[LazyTensor, LazyTensor]] = {}
    for part in ("base_layer", "plain", "modules_to_save"):
        for name, tensor in keys.parts[part].items():
            key = spell_key(name, part)
            if name in held:
                other, copy = held[name]
                pairs[f"{other} and {key}"] = (copy, tensor)
            held[name] = (key, tensor)
    return pairs


def require_equal_copies(path: Path, copies: Copies) -> None:
    """Raise ``AdapterError`` where two copies of a tensor differ. Reads them."""
    for names, (one, other) in sorted(copies.items()):
        if not equal_values(one, other):
            raise _copies_error(path, names)


def _copies_error(path: Path, names: str) -> AdapterError:
    return AdapterError(
        tr("the adapter holds two different versions of one tensor"),
        file=path,
        tensor=names,
        expected=tr("equal tensors, as PEFT writes them"),
        found=tr("other shapes or values"),
        remedy=tr("save the adapter again, or remove the one that is not meant"),
    )


def spell_key(name: str, part: str) -> str:
    """The key of a whole tensor's copy in the adapter, without PEFT's prefix.

    >>> spell_key("lm_head.weight", "plain"), spell_key("lm_head.weight", "modules_to_save")
    ('lm_head.weight', 'lm_head.modules_to_save.weight')
    """
    if part == "plain":
        return name
    module, _, rest = name.rpartition(".")
    return f"{module}.{part}.{rest}"


def equal_values(one: LazyTensor, other: LazyTensor, rounded: torch.dtype | None = None) -> bool:
    """Whether two tensors are equal element by element, read in blocks up to the first difference.

    With ``rounded``, whether ``one`` is what ``other`` becomes in that dtype. Each is opened once:
    opening a sum reads its factors, and with DoRA of columns all of its rows.
    """
    if one is other or _same_place(one, other):
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
        wanted = blocks[1] if rounded is None else blocks[1].to(rounded)
        if not torch.equal(blocks[0].float(), wanted.float()):
            return False
    return True


def _same_place(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors are the same elements of the same file, as a .bin shares them."""
    if not isinstance(one, FileTensor) or not isinstance(other, FileTensor):
        return False
    places = [(t.path, t.offset, t.dtype, t.shape, t.strides) for t in (one, other)]
    return places[0] == places[1]
