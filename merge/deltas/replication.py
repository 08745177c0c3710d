"""A base whose layers an adapter's ``layer_replication`` repeats.

PEFT trains an adapter for each copy, while the copies share the base's weights. Here each copy is
the same unread tensor under another name, so what is added to one changes no other. (PEFT's own
``merge_and_unload`` adds what belongs to one copy to all of them, up to 0.21 at least.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..layouts.replicated_layers import FIELD, LayerRange, list_sources, replicate_config
from ..messages import join, tr
from .adapter_config import CONFIG_NAME, AdapterFolder

if TYPE_CHECKING:
    from ..tensors.lazy import Checkpoint, LazyTensor

_LAYER = re.compile(r"((?:model\.)?layers\.)(\d{1,9})(\..+)")


def find_layer_ranges(adapters: Sequence[AdapterFolder]) -> tuple[LayerRange, ...]:
    """The ranges of layers that the first adapter repeats, empty if it repeats none.

    Raises ``AdapterError`` for a later adapter that repeats layers.
    """
    found = [_get_ranges(adapter) for adapter in adapters]
    for adapter, ranges in zip(adapters[1:], found[1:], strict=True):
        if ranges:
            raise AdapterError(
                tr("an adapter that repeats layers of the base must be the first one"),
                file=adapter.path / CONFIG_NAME,
                expected=tr("it in the first place of --lora_model"),
                found=tr(
                    '"{field}": {map} after another adapter',
                    field=FIELD,
                    map=list(map(list, ranges)),
                ),
                remedy=tr(
                    "if it was trained on the result of the adapters before it, merge "
                    "these first, and give the result as --base_model"
                ),
            )
    return found[0] if found else ()


def _get_ranges(adapter: AdapterFolder) -> tuple[LayerRange, ...]:
    return adapter.adapter_config.layer_replication if CONFIG_NAME in adapter.files else ()


def adapt_config(config: Mapping[str, Any], adapters: Sequence[AdapterFolder]) -> Mapping[str, Any]:
    """The base's ``config.json`` as the adapters' model has it: with the layers that they repeat.

    Raises ``AdapterError`` as ``list_sources`` and ``replicate_config`` do.
    """
    ranges = find_layer_ranges(adapters)
    if not ranges:
        return config
    path = adapters[0].path / CONFIG_NAME
    return replicate_config(config, list_sources(ranges, config, path), path)


def replicate_layers(
    base: Checkpoint, adapters: Sequence[AdapterFolder]
) -> tuple[Checkpoint, tuple[str, ...]]:
    """The base with the layers that the first adapter repeats, and a note that says so.

    Raises ``AdapterError`` for ranges that do not fit the base.
    """
    ranges = find_layer_ranges(adapters)
    if not ranges:
        return base, ()
    path = adapters[0].path / CONFIG_NAME
    sources = list_sources(ranges, base.config, path)
    config = replicate_config(base.config, sources, path)
    tensors = _copy_layers(base.tensors, sources, path)
    listed = join(", ", (tr("{first} to {end}", first=first, end=end - 1) for first, end in ranges))
    note = tr(
        "the result has {n_sources} layers: copies of the base's {listed} ({field})",
        n_sources=len(sources),
        listed=listed,
        field=FIELD,
    )
    return replace(base, tensors=tensors, config=config), (note,)


def _copy_layers(
    tensors: Mapping[str, LazyTensor], sources: Sequence[int], path: Path
) -> dict[str, LazyTensor]:
    """The tensors under the names of the new model, a copy of each layer where it is wanted."""
    layers: dict[int, dict[tuple[str, str], LazyTensor]] = {}
    for name, tensor in tensors.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match[2]), {})[match[1], match[3]] = tensor
    if missing := sorted({*sources} - layers.keys()):
        raise AdapterError(
            tr("the adapter repeats layers, and the base's files do not name them as PEFT does"),
            file=path,
            expected=tr("tensors model.layers.{missing}...", missing=missing[0]),
            found=", ".join(list(tensors)[:3]) + ", ...",
            remedy=tr("use it unmerged, with PEFT"),
        )
    copied: dict[str, LazyTensor] = {}
    seen: set[int] = set()
    for layer, source in enumerate(sources):
        for (head, tail), tensor in layers[source].items():
            # Of two copies one is enough for the digest of what is read.
            copied[f"{head}{layer}{tail}"] = tensor.without_digest() if source in seen else tensor
        seen.add(source)
    others = {name: tensor for name, tensor in tensors.items() if not _LAYER.fullmatch(name)}
    return copied | others
