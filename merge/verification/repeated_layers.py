"""A base whose layers the first adapter repeats (``layer_replication``), found a second time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import AdapterError
from ..layouts.replicated_layers import FIELD, list_sources, read_layer_ranges, replicate_config
from ..messages import tr
from ..storage.zipped_adapter import ADAPTER_CONFIG_NAME
from ..tensors.lazy import Checkpoint
from .adapters import AdapterContents

_LAYER = re.compile(r"\blayers\.(\d{1,9})\.")


@dataclass(frozen=True)
class RepeatedLayers:
    """Which layer of the base each layer of the result is a copy of; empty where all are their own.

    ``config`` gives the result's ``config.json`` of the base's.
    """

    adapter: AdapterContents | None = None
    sources: Mapping[int, int] = field(default_factory=dict)

    def find_own_name(self, name: str) -> str:
        """The base's own name of a tensor of the result."""
        layer = _LAYER.search(name)
        if layer is None or int(layer[1]) not in self.sources:
            return name
        return _LAYER.sub(f"layers.{self.sources[int(layer[1])]}.", name, count=1)

    def repeat(self, model: Checkpoint) -> Checkpoint:
        """A model of the base's layers with the layers of the result."""
        if self.adapter is None:
            return model
        path = self.adapter.folder / ADAPTER_CONFIG_NAME
        config: Mapping[str, Any] = replicate_config(
            model.config, tuple(self.sources.values()), path
        )
        tensors = {}
        for name, tensor in model.tensors.items():
            layer = _LAYER.search(name)
            if layer is None:
                tensors[name] = tensor
                continue
            for number in (new for new, old in self.sources.items() if old == int(layer[1])):
                tensors[_LAYER.sub(f"layers.{number}.", name, count=1)] = tensor
        return replace(model, tensors=tensors, config=config)


def find_repeated_layers(adapters: Sequence[AdapterContents], base: Checkpoint) -> RepeatedLayers:
    """What the first adapter's ``layer_replication`` makes of the layers of ``base``.

    Raises ``AdapterError`` for a later adapter that has one, and for ranges that do not fit.
    """
    paths = [adapter.folder / ADAPTER_CONFIG_NAME for adapter in adapters]
    found = [read_layer_ranges(a.config, path) for a, path in zip(adapters, paths, strict=True)]
    if any(found[1:]):
        raise AdapterError(
            tr("an adapter after the first repeats layers, so the arithmetic cannot be checked"),
            file=next(path for path, ranges in zip(paths[1:], found[1:], strict=True) if ranges),
            expected=tr('"{field}" in the first adapter alone', field=FIELD),
            remedy=tr("give the adapters that were merged, in their order"),
        )
    if not any(found):
        return RepeatedLayers()
    order = list_sources(found[0], base.config, paths[0])
    return RepeatedLayers(adapters[0], dict(enumerate(order)))
